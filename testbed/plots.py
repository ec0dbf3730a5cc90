"""Charts as SVG text, by matplotlib: static, without a window, files or global state.

    numbers --curves, spreads, stacks, points, steps, moments--> SVG that takes its colours from the page around it

Every colour is `var(--name, fallback)`: a page that sets the variables has charts in its own light and dark; without,
the fallbacks are for a light ground. Text stays text, in the reader's font. Colours tell apart for colour-blind eyes
(after Okabe and Ito), and curves differ in dashes and markers as well. Charts are drawn narrow, so that they
can be read on a telephone; wide pages put several side by side.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.plot_canvas import ALARM, INK, MUTED, PAPER, SERIES, new_figure, styled, to_svg

__all__ = [
    "Curve",
    "Span",
    "Spread",
    "Stack",
    "curves",
    "moments",
    "points",
    "spreads",
    "stacks",
    "steps",
]

ROW = 24
"""Points for each row of a chart that has one for each label."""
LONGEST_LABEL = 34

_OF_LINES = (0, 1, 2, 3, 4, 5, 7, 6)
"""Colours for lines: the greys last."""
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))
_MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Curve:
    """One line; `low` and `high` bound a band around it."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    group: str = ""
    """Curves of a group share a colour and differ in dashes."""


@dataclass(frozen=True)
class Spread:
    """One row: a value, what it ranges over, and the single measurements."""

    label: str
    value: float
    low: float
    high: float
    single: Sequence[float] = ()


@dataclass(frozen=True)
class Stack:
    """One bar, made of parts."""

    label: str
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Span:
    """A stretch of time."""

    begin: float
    end: float


@styled
def curves(
    lines: Sequence[Curve], *, x_label: str, y_label: str, log_x: bool, log_y: bool = False, rule: float | None = None
) -> str:
    """Draw lines over a common axis, with bands where they have any, and a rule at a value that matters.

    A line without points is not drawn, but the others look as if it were: so do charts of the same lines.
    """
    rows_of_legend = math.ceil(sum(bool(line.x) for line in lines) / 2)
    figure, axes = new_figure(230 + 15 * rows_of_legend)
    looks = _looks([line.group or line.label for line in lines])
    for line, (colour, dash, marker) in zip(lines, looks, strict=True):
        if not line.x:
            continue
        if line.low:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(
            line.x, line.y, color=colour, linestyle=dash, marker=marker, markersize=4, linewidth=1.6, label=line.label
        )
    if rule is not None:
        axes.axhline(rule, color=INK, linewidth=1, linestyle=(0, (2, 2)))
    _scale(axes.xaxis, axes.set_xscale, log_x, sorted({x for line in lines for x in line.x}))
    _scale(axes.yaxis, axes.set_yscale, log_y, [])
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(axis="both")
    figure.legend(loc="outside lower center", ncols=2)
    return to_svg(figure)


@styled
def spreads(rows: Sequence[Spread], *, x_label: str, log: bool = False, rule: float | None = None) -> str:
    """Draw a row for each label: its value, a bar from low to high, and the single measurements as small dots."""
    figure, axes = new_figure(50 + ROW * len(rows))
    for place, row in enumerate(rows):
        axes.plot(row.single, [place] * len(row.single), "o", color=SERIES[0], markersize=3.5, alpha=0.3, mew=0)
        axes.plot([row.low, row.high], [place, place], color=SERIES[0], linewidth=5, alpha=0.35)
        axes.plot([row.value], [place], "o", color=SERIES[0], markersize=6.5, mec=PAPER, mew=1)
    if rule is not None:
        axes.axvline(rule, color=INK, linewidth=1, linestyle=(0, (2, 2)))
    _label_rows(axes, [row.label for row in rows])
    _scale(axes.xaxis, axes.set_xscale, log, [])
    if not log:
        axes.set_xlim(left=0)
    axes.set_xlabel(x_label)
    return to_svg(figure)


@styled
def stacks(
    bars: Sequence[Stack], *, label: str, order: Sequence[str], upright: bool = False, top: float | None = None
) -> str:
    """Draw bars of parts that add up; lying down with long labels, or upright where labels are short.

    `order` names the parts; charts that share it give a part the same colour. `top` is where upright bars' axis ends.
    """
    parts = [part for part in order if any(bar.parts.get(part) for bar in bars)]
    figure, axes = new_figure((240 if upright else 60 + ROW * len(bars)) + 15 * math.ceil(len(parts) / 5))
    places, ends = range(len(bars)), [0.0] * len(bars)
    for part in parts:
        sizes = [bar.parts.get(part, 0.0) for bar in bars]
        draw: Callable[..., Any] = axes.bar if upright else axes.barh
        start = {"bottom" if upright else "left": list(ends)}
        draw(places, sizes, 0.72, **start, color=_series(order.index(part)), label=part, edgecolor=PAPER, linewidth=0.5)
        ends = [end + size for end, size in zip(ends, sizes, strict=True)]
    if upright:
        axes.set_xticks(places, [bar.label for bar in bars])
        axes.set_ylabel(label)
        axes.set_ylim(0, top)
        axes.grid(axis="y")
    else:
        _label_rows(axes, [bar.label for bar in bars])
        axes.set_xlabel(label)
    figure.legend(loc="outside lower center", ncols=5)
    return to_svg(figure)


@styled
def points(
    rows: Sequence[tuple[str, Mapping[str, Sequence[float]]]],
    *,
    x_label: str,
    log: bool = False,
    band: Span | None = None,
) -> str:
    """Draw a row for each label with the points of several series; `band` is where they ought to be."""
    series = list(dict.fromkeys(name for _, found in rows for name in found))
    figure, axes = new_figure(50 + ROW * len(rows) + (20 if len(series) > 1 else 0))
    if band is not None:
        axes.axvspan(band.begin, band.end, color=SERIES[2], alpha=0.13, linewidth=0)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        furthest = max([band.end, *(abs(value) for _, found in rows for part in found.values() for value in part)])
        axes.set_xlim(-1.1 * furthest, 1.1 * furthest)
    for number, name in enumerate(series):
        pairs = [(value, place) for place, (_, found) in enumerate(rows) for value in found.get(name, ())]
        look = {"markersize": 6, "alpha": 0.75, "mew": 0, "color": _series(number)}
        axes.plot([x for x, _ in pairs], [y for _, y in pairs], _MARKERS[number % 8], label=name, **look)
    _label_rows(axes, [label for label, _ in rows])
    _scale(axes.xaxis, axes.set_xscale, log, [])
    axes.set_xlabel(x_label)
    if len(series) > 1:
        figure.legend(loc="outside lower center", ncols=4)
    return to_svg(figure)


@styled
def steps(course: Sequence[tuple[float, float]], *, end: float, y_label: str, cut: Sequence[Span], top: float) -> str:
    """Draw a value that stays until it changes, from 0 to `end` seconds, shaded where the link is cut."""
    figure, axes = new_figure(150)
    for span in cut:
        axes.axvspan(span.begin, span.end, color=ALARM, alpha=0.45, linewidth=0)
    x, y = [at for at, _ in course], [value for _, value in course]
    axes.step([*x, end], [*y, y[-1]], where="post", color=SERIES[0], linewidth=1.3)
    axes.set_xlim(0, end)
    axes.set_ylim(0, 1.08 * top)
    axes.set_xlabel("seconds since the program started")
    axes.set_ylabel(y_label)
    axes.grid(axis="y")
    return to_svg(figure)


@styled
def moments(rows: Sequence[tuple[str, Sequence[float]]], *, end: float) -> str:
    """Draw a row for each label with a tick for each moment, from 0 to `end` seconds."""
    figure, axes = new_figure(50 + ROW * len(rows))
    for place, (_, times) in enumerate(rows):
        axes.plot(times, [place] * len(times), "|", color=SERIES[place % len(SERIES)], markersize=12, mew=1.6)
    _label_rows(axes, [label for label, _ in rows])
    axes.set_xlim(-0.01 * end, 1.01 * end)
    axes.set_xlabel("seconds since the program started")
    return to_svg(figure)


def _label_rows(axes: Any, labels: Sequence[str]) -> None:
    """Name rows from the top down."""
    axes.set_yticks(range(len(labels)), [_shortened(label) for label in labels], color=INK)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="x")


def _shortened(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def _scale(axis: Any, set_scale: Callable[[str], None], log: bool, ticks: Sequence[float]) -> None:
    """Make an axis logarithmic if wanted, with plain numbers at `ticks` or at 1, 2, 5, 10, …"""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if log:
        set_scale("log")
        axis.set_major_locator(LogLocator(subs=_steps_in_decade(axis)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    if ticks and len(ticks) <= 8:
        axis.set_ticks(ticks, labels=[_plain(value) for value in ticks])


def _steps_in_decade(axis: Any) -> tuple[float, ...]:
    """Choose ticks so that a logarithmic axis has a handful of them."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    if decades > 2.5:
        return (1.0,)
    return (1.0, 2.0, 5.0) if decades > 0.8 else tuple(map(float, range(1, 10)))


def _plain(value: float) -> str:
    """Write a number as people do."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            size = {"G": 1e9, "M": 1e6, "k": 1e3}[unit]
            return f"{value / size:g} {unit}"
    return f"{value:g}"


def _series(number: int) -> str:
    return SERIES[number % len(SERIES)]


def _looks(groups: Sequence[str]) -> list[tuple[str, Any, str]]:
    """Choose colour, dashes and marker of each curve: a colour a group, dashes and markers within it."""
    colours = {group: _series(_OF_LINES[number % len(_OF_LINES)]) for number, group in enumerate(dict.fromkeys(groups))}
    seen: dict[str, itertools.count[int]] = {}
    looks = []
    for number, group in enumerate(groups):
        member = next(seen.setdefault(group, itertools.count()))
        looks.append((colours[group], _DASHES[member % len(_DASHES)], _MARKERS[number % len(_MARKERS)]))
    return looks
