"""What a person sees."""

import io

import pytest
from rich.console import Console

from testbed.display import Display, fitting_table, format_value, table_of


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("latency_p50_s", 4.0512, "4.05\N{NO-BREAK SPACE}s"),
        ("wait_s", 0.01234, "12.3\N{NO-BREAK SPACE}ms"),
        ("agreement_top1_pct", 98.0, "98\N{NO-BREAK SPACE}%"),
        ("speedup_vs_single", 2.871, "2.87×"),
        ("bytes_per_request_predicted", 46080, "46.1\N{NO-BREAK SPACE}kB"),
        ("bytes_per_request_predicted", 12, "12\N{NO-BREAK SPACE}B"),
        ("bytes_total", 3.2e9, "3.20\N{NO-BREAK SPACE}GB"),
        ("flops_per_request_max_rank", 21_744_320_512, "21.7\N{NO-BREAK SPACE}G"),
        ("requests", 10, "10"),
        ("ok", True, "yes"),
        ("anything", None, "–"),
        ("strategy", "astra", "astra"),
    ],
)
def test_format_value_follows_the_unit_in_the_name(name: str, value: str | float | None, text: str) -> None:
    assert format_value(name, value) == text


def test_table_leaves_out_empty_columns_and_keeps_brackets() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(table_of([{"strategy": "[red]x", "settings": "", "lost": None}, {"strategy": "y"}]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[red]x" in text
    assert "settings" not in text
    assert "lost" not in text


def test_display_prints_plain_lines_when_not_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=100)
    with Display(console) as display:
        display.phase("calibrating links")
        for done in range(21):
            display.progress("astra [G=1]", done, 20)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "calibrating links" in lines[0]
    assert len(lines) == 1 + 11  # one a tenth
    assert lines[-1].endswith("astra [G=1] 20/20")
    assert not any("\x1b" in line for line in lines)


WIDE = [
    {"strategy": name, "settings": "wire=fp32", **{f"bytes_of_kind_{k}": factor * 10**k for k in range(8)}}
    for factor, name in enumerate(("single", "sequence"), start=1)
]


@pytest.mark.parametrize(("width", "turned"), [(40, True), (60, True), (80, True), (200, False)])
def test_table_is_turned_where_its_columns_do_not_fit(width: int, turned: bool) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(fitting_table(WIDE, console, title="t"))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "20.0\N{NO-BREAK SPACE}MB" in text  # never broken between number and unit
    assert "in every row: settings wire=fp32" in text
    assert ("bytes of kind 7" in text) == turned


def test_table_of_nothing_says_so() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(fitting_table([], console))
    assert "nothing to show" in console.file.getvalue()  # type: ignore[attr-defined]
