"""The ground that charts are drawn on: matplotlib as we want it, colours that the page chooses, SVG text. See `plots`.

@styled                                         matplotlib's settings hold for one chart and nobody else
figure, axes = new_figure(height)
... drawn in INK, SERIES[0], ...  --to_svg-->   <svg> with var(--ink, …), var(--series-0, …) and ids of its own
"""

import functools
import hashlib
import io
import re
from collections.abc import Callable
from typing import Any, ParamSpec

__all__ = [
    "ALARM",
    "DARK",
    "GRID",
    "INK",
    "LIGHT",
    "MUTED",
    "PALETTE",
    "PAPER",
    "SERIES",
    "new_figure",
    "standing_alone",
    "styled",
    "to_svg",
]

P = ParamSpec("P")

WIDTH = 440
"""Points; also the pixels that a chart takes where there is room for no more."""
TEXT = 10
"""Points."""

INK, MUTED, GRID, PAPER, ALARM = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05"
"""Colours that nothing else has, until they become variables."""
_NAMES = ("ink", "muted", "grid", "paper", "alarm")
_GROUND = dict(zip((INK, MUTED, GRID, PAPER, ALARM), _NAMES, strict=True))
PALETTE = ("#0072b2", "#e08e00", "#009e73", "#56b4e9", "#d55e00", "#aa4499", "#7f8790", "#8c6d1f", "#c3c9d0")
"""Colours of series on a light ground."""
_PALETTE_ON_DARK = ("#4aa3df", "#f0ab3c", "#2fc79a", "#9bd3f5", "#f2803f", "#d67fc4", "#8e98a4", "#c9a64f", "#48515c")
LIGHT = {
    **dict(zip(_NAMES, ("#1f2328", "#59636e", "#d8dee4", "#ffffff", "#b3261e"), strict=True)),
    **{f"series-{number}": colour for number, colour in enumerate(PALETTE)},
}
"""Values of the variables, by name without the dashes in front; charts fall back to them."""
DARK = {
    **dict(zip(_NAMES, ("#e6e9ee", "#9aa4b0", "#333b45", "#12161b", "#ff7b72"), strict=True)),
    **{f"series-{number}": colour for number, colour in enumerate(_PALETTE_ON_DARK)},
}
SERIES = tuple(f"#0b0c{number:02x}" for number in range(len(PALETTE)))


def styled(draw: Callable[P, str]) -> Callable[P, str]:
    """Draw with our settings of matplotlib, and leave nobody else with them."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> str:
        import matplotlib as mpl  # slow to import: only those who draw wait for it

        with mpl.rc_context(_style()):
            return draw(*args, **kwargs)

    return drawn


def new_figure(height: float) -> tuple[Any, Any]:
    """Return a figure of WIDTH × `height` points and its axes. Nothing of it is shared with other figures."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)
    return figure, axes


def _style() -> Any:
    inks = ("text.color", "axes.labelcolor", "legend.labelcolor")
    return {
        **dict.fromkeys(inks, INK),
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "axes.edgecolor": GRID,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "font.size": TEXT,
        "axes.labelsize": TEXT,
        "legend.fontsize": TEXT,
        "legend.frameon": False,
        "legend.columnspacing": 1.2,
        "legend.handlelength": 1.9,
        "axes.axisbelow": True,
        "svg.fonttype": "none",
        "svg.hashsalt": "testbed",
    }


def to_svg(figure: Any) -> str:
    """Write a figure as an SVG element that can stand in a page among others."""
    buffer = io.StringIO()
    figure.get_layout_engine().execute(figure)  # once; savefig would do it twice, and draw twice
    figure.set_layout_engine("none")
    figure.canvas.print_svg(buffer, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style .*?</style>", "", text, flags=re.DOTALL)  # it would hold for the page
    text = re.sub(r'<svg (.*?)width="[^"]*" height="[^"]*"', r'<svg style="stroke-linejoin: round" \1', text, count=1)
    text = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", text)
    variables = {**_GROUND, **{colour: f"series-{number}" for number, colour in enumerate(SERIES)}}
    for colour, name in variables.items():
        text = text.replace(colour, f"var(--{name}, {LIGHT[name]})")
    return _with_own_ids(re.sub(r"\s*\n\s*", "\n", text).strip())


def standing_alone(svg: str) -> str:
    """Give a chart what a file of its own needs: a ground, and light ink where its reader likes it dark."""
    dark = "; ".join(f"--{name}: {colour}" for name, colour in DARK.items())
    style = f"<style>@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}</style>"
    ground = f'<rect width="100%" height="100%" fill="var(--paper, {LIGHT["paper"]})"/>'
    end = svg.index(">") + 1
    return svg[:end] + style + ground + svg[end:] + "\n"


def _with_own_ids(text: str) -> str:
    """Drop ids that nothing refers to, and make the others differ from those of other charts."""
    own = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    text = re.sub(r' id="(?:figure|axes|patch|line2d|text|xtick|ytick|legend|matplotlib|[A-Z])[^"]*"', "", text)
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>c{own}-", text)
