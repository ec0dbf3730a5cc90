"""Reports in a real browser: no complaint, nothing missing, nothing wider than the screen. Keeps pictures.

The pictures are in REPORT_SHOTS if that names a folder, and else in pytest's temporary one.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Page, find_browser, open_browser
from run_folders import write_cut_off_run, write_run, write_sweep

from testbed.report import write_report

pytestmark = pytest.mark.browser

WIDTHS = (1280, 390)
WRITERS = {"run": write_run, "cut-off": write_cut_off_run, "sweep": write_sweep}
SORT = """(() => {
  const table = document.querySelector("#summary table");
  const heading = [...table.querySelectorAll("th")].find((each) => each.innerText.includes("p50"));
  const values = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[heading.cellIndex].dataset.value));
  heading.querySelector("button").click();
  const upwards = values();
  heading.querySelector("button").click();
  return [upwards, values(), heading.getAttribute("aria-sort")];
})()"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    program = find_browser()
    assert program is not None
    with open_browser(program) as opened:
        yield opened


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("REPORT_SHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    return {name: write_report(write(folder / name)) for name, write in WRITERS.items()}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", WRITERS)
def test_report_opens_cleanly(
    page: Page, reports: dict[str, Path], shots: Path, *, name: str, width: int, dark: bool
) -> None:
    page.open(reports[name], width=width, dark=dark)
    page.screenshot(shots / f"{name}-{width}-{'dark' if dark else 'light'}.png")
    assert page.complaints() == []
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert page.evaluate("[...document.images].filter((image) => !image.naturalWidth).length") == 0
    empty = (
        "[...document.querySelectorAll('figure')].filter((each) => each.querySelector('svg').clientHeight < 40).length"
    )
    assert page.evaluate(empty) == 0
    assert page.evaluate("document.querySelectorAll('figure svg').length") > 0


@pytest.mark.parametrize("name", WRITERS)
def test_report_is_readable_in_both_lights(page: Page, reports: dict[str, Path], name: str) -> None:
    colours = []
    for dark in (False, True):
        page.open(reports[name], width=WIDTHS[0], dark=dark)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        text = page.evaluate("getComputedStyle(document.querySelector('figure text')).fill")
        colours.append((ground, text))
    (light, dark_text_on_light), (dark_ground, light_text_on_dark) = colours
    assert light == "rgb(255, 255, 255)"
    assert dark_ground != light
    assert dark_text_on_light != light_text_on_dark


def test_report_prints_light_and_whole(page: Page, reports: dict[str, Path], shots: Path) -> None:
    page.open(reports["run"], width=800, dark=True, medium="print")
    page.screenshot(shots / "run-print.png")
    page.pdf(shots / "run.pdf")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert (shots / "run.pdf").read_bytes().startswith(b"%PDF")


def test_report_sorts_tables(page: Page, reports: dict[str, Path]) -> None:
    page.open(reports["run"], width=WIDTHS[0])
    upwards, downwards, said = page.evaluate(SORT)
    assert upwards == sorted(upwards)
    assert downwards == sorted(upwards, reverse=True)
    assert len(set(upwards)) > 1
    assert said == "descending"
    assert page.complaints() == []
