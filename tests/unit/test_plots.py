"""Charts as text: well-formed, in the page's colours, side by side on one page."""

import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from testbed import plots
from testbed.plot_canvas import PALETTE

DRAWN: dict[str, Callable[[], str]] = {
    "curves": lambda: plots.curves(
        [plots.Curve("a <b> & c", [10, 100], [0.5, 2], [0.4, 1.9], [0.6, 2.1]), plots.Curve("d", [10, 100], [1, 3])],
        x_label="Mbps",
        y_label="times",
        log_x=True,
        log_y=True,
        rule=1.0,
    ),
    "spreads": lambda: plots.spreads([plots.Spread("a", 1, 0.8, 1.2, [0.7, 1, 1.3])], x_label="s", rule=1.0),
    "stacks": lambda: plots.stacks([plots.Stack("a", {"x": 1, "y": 2})], label="ms", order=["x", "y"]),
    "upright": lambda: plots.stacks([plots.Stack("0", {"x": 1})], label="ms", order=["x"], upright=True, top=3),
    "points": lambda: plots.points([("a", {"p": [1, 2], "q": [30]})], x_label="bytes", log=True),
    "band": lambda: plots.points([("a", {"p": [-0.5, 1.5]})], x_label="error", band=plots.Span(-1, 1)),
    "steps": lambda: plots.steps([(0, 10), (2, 2)], end=5, y_label="Mbps", cut=[plots.Span(3, 4)], top=10),
    "moments": lambda: plots.moments([("a", [1, 2]), ("b", [3])], end=5),
}


@pytest.mark.parametrize("name", DRAWN)
def test_chart_is_one_svg_element_that_grows_with_its_place(name: str) -> None:
    root = ElementTree.fromstring(DRAWN[name]())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.get("viewBox", "").startswith("0 0 440 ")
    assert root.get("width") is None


@pytest.mark.parametrize("name", DRAWN)
def test_chart_takes_every_colour_from_the_page(name: str) -> None:
    text = DRAWN[name]()
    without_variables = re.sub(r"var\(--[a-z0-9-]+, #[0-9a-f]{6}\)", "", text)
    assert re.findall(r"(?:fill|stroke): *#[0-9a-f]{3,6}", without_variables) == []
    assert "<style" not in text


@pytest.mark.parametrize("name", DRAWN)
def test_chart_is_the_same_every_time(name: str) -> None:
    assert DRAWN[name]() == DRAWN[name]()


def test_charts_share_no_ids() -> None:
    ids = [set(re.findall(r'\bid="([^"]+)"', draw())) for draw in DRAWN.values()]
    assert sum(map(len, ids)) == len(set().union(*ids))
    for draw in DRAWN.values():
        text = draw()
        referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
        assert referred <= set(re.findall(r'\bid="([^"]+)"', text))


def test_chart_keeps_text_as_text_and_escapes_it() -> None:
    texts = [
        element.text for element in ElementTree.fromstring(DRAWN["curves"]()).iter() if element.tag.endswith("text")
    ]
    assert {"a <b> & c", "Mbps", "times", "10", "100"} <= set(texts)


def test_chart_of_the_same_parts_has_the_same_colours() -> None:
    order = ["x", "y", "z"]
    text = plots.stacks([plots.Stack("a", {"z": 1})], label="ms", order=order)
    assert f"var(--series-2, {PALETTE[2]})" in text
    assert "--series-0" not in text


def test_chart_leaves_matplotlib_as_it_was() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    DRAWN["curves"]()
    assert dict(mpl.rcParams) == before
