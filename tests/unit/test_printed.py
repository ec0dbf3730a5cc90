"""Rows of the summary out of what programs print."""

import json
from pathlib import Path

import pytest

from testbed.errors import InputError
from testbed.printed import PrintedRows
from testbed.scenario import load, parse
from testbed.value_at import value_at

COLUMNS = {"seconds": "seconds", "received": "end.streams[0].bytes"}
SAID = {"seconds": 1.5, "end": {"streams": [{"bytes": 7}]}}


def rows(lines: list[str], columns: dict[str, str] = COLUMNS) -> list[object]:
    printed = PrintedRows("d1", columns)
    return [row for line in lines if (row := printed.take(line)) is not None]


@pytest.mark.parametrize("indent", [None, 0, 2, "\t"], ids=repr)
def test_printed_object_becomes_a_row_in_one_line_or_over_many(indent: int | str | None) -> None:
    lines = ["starting", *json.dumps(SAID, indent=indent).splitlines(), "done"]
    assert rows(lines) == ([{"device": "d1", "seconds": 1.5, "received": 7}] if indent != 0 else [])


def test_printed_objects_without_a_column_are_passed_over() -> None:
    assert rows(['{"seconds": 2}', '{"error": "refused"}', "{", '  "seconds": 2', "}"]) == []


def test_printed_null_is_an_empty_cell_and_a_list_is_json() -> None:
    said = json.dumps({"seconds": None, "end": {"streams": [{"bytes": [1, 2]}]}})
    assert rows([said]) == [{"device": "d1", "seconds": None, "received": "[1, 2]"}]


def test_printed_object_follows_one_that_was_cut_off() -> None:
    assert len(rows(["{", '  "seconds": 2,', json.dumps(SAID), "}"])) == 1


@pytest.mark.parametrize("line", ["{", "{}", "{oops}", '{"a": ', "}", "[1]", "", '{"seconds": NaN}'])
def test_printed_text_that_is_no_object_is_no_row(line: str) -> None:
    assert rows([line, *json.dumps(SAID, indent=1).splitlines()]) == [{"device": "d1", "seconds": 1.5, "received": 7}]


def test_nothing_is_read_without_columns() -> None:
    assert rows([json.dumps(SAID)], {}) == []


@pytest.mark.parametrize("path", ["end.streams[1].bytes", "end.streams.bytes", "seconds[0]", "seconds.x", "other"])
def test_value_at_is_absent_where_nothing_is(path: str) -> None:
    assert value_at(SAID, path, "absent") == "absent"


def scenario(summary: object) -> dict[str, object]:
    return {"name": "x", "devices": {"count": 1}, "workload": {"command": ["true"], "summary": summary}}


@pytest.mark.parametrize(
    ("summary", "fault"),
    [
        ({}, "workload.summary must be"),
        (None, "workload.summary must be"),
        ({"Mbps": "a"}, "must be the name of a column of summary.csv, got 'Mbps'"),
        ({"mbps": "a..b"}, "workload.summary.mbps must be a path such as seconds or end.streams[0].bytes, got 'a..b'"),
        ({"mbps": "a[x]"}, "workload.summary.mbps must be a path such as seconds or end.streams[0].bytes, got 'a[x]'"),
    ],
)
def test_scenario_says_which_column_or_path_is_wrong(summary: object, fault: str) -> None:
    with pytest.raises(InputError, match=r"must be") as error:
        parse(scenario(summary), "x.yaml")
    assert fault in str(error.value)


def test_scenario_without_columns_is_written_as_before(tmp_path: Path) -> None:
    plain = parse({"name": "x", "devices": {"count": 1}, "workload": {"command": ["true"]}}, "x.yaml")
    assert "summary" not in plain.dump()
    path = tmp_path / "x.yaml"
    path.write_text(parse(scenario({"a": "b[0]"}), "x.yaml").dump())
    assert load(path).workload.summary == {"a": "b[0]"}
