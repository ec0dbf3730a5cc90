"""Latency and speed-up over what was varied, where splitting starts to win, and where the time goes.

(setting, run), ... --points--> by other settings and label: x -> median, spread
                    ----------> a chart a setting of the others, a line a label
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from testbed import plots
from testbed.record import Row
from testbed.report import break_even, outcome
from testbed.report.axes import Setting, Value, main_axis
from testbed.report.folder import RunFolder
from testbed.report.model import Figure, Section, table
from testbed.report.rows import middle, numbers
from testbed.report.time_spent import UNTOLD, by_strategy, part_names

__all__ = ["Point", "points", "sections"]

Cells = Sequence[tuple[Setting, RunFolder]]
Panel = tuple[tuple[str, Value], ...]
"""The settings of all axes but the one that is drawn along."""

MOST_PANELS = 12
UNITS = {"rate_mbps": "Mbps", "delay_ms": "ms", "loss_pct": "%", "count": "devices", "jitter_ms": "ms"}


@dataclass(frozen=True)
class Point:
    """One label at one setting, over all repetitions: median, low and high of latency in seconds and of speed-up."""

    latency: tuple[float, float, float]
    speedup: tuple[float, float, float] | None
    repeats: int


def sections(cells: Cells, axes: Sequence[str]) -> list[Section]:
    """Return the sections that compare runs."""
    along = main_axis(axes, [setting for setting, _ in cells])
    if along is None:
        text = "The runs do not differ in any number, so there is nothing to draw curves over."
        return [Section("latency", "Latency and speed-up", missing=(text,))]
    panels = points(cells, along)
    if not panels:
        return [Section("latency", "Latency and speed-up", missing=("No run has latencies in its summary.csv.",))]
    return [_latency(panels, along), _break_even(panels, along), _time(cells, along)]


def points(cells: Cells, along: str) -> dict[Panel, dict[str, dict[float, Point]]]:
    """Return the points by panel, label and value on the axis `along`."""
    found: dict[Panel, dict[str, dict[float, list[tuple[Row, plots.Spread]]]]] = {}
    for setting, run in cells:
        panel, at = _panel(setting, along), numbers([setting], along)
        for label, (row, spread) in outcome.measured(run).items():
            found.setdefault(panel, {}).setdefault(label, {}).setdefault(at[0], []).append((row, spread))
    return {
        panel: {
            label: {at: _point(members) for at, members in sorted(by_x.items())} for label, by_x in by_label.items()
        }
        for panel, by_label in found.items()
    }


def _latency(panels: dict[Panel, dict[str, dict[float, Point]]], along: str) -> Section:
    figures = []
    for panel, by_label in list(panels.items())[:MOST_PANELS]:
        name = f", {_named(panel)}" if panel else ""
        gains = [_curve(label, {at: point.speedup for at, point in by_x.items()}) for label, by_x in by_label.items()]
        gains = [
            curve if set(curve.y) - {1.0} else plots.Curve(curve.label, (), (), group=curve.group) for curve in gains
        ]
        draw = functools.partial(plots.curves, x_label=_unit(along), log_x=_is_wide(by_label), log_y=True)
        if any(curve.x for curve in gains):
            chart = draw(gains, y_label="times as fast as one device", rule=1.0)
            figures.append(Figure(f"Speed-up{name}", chart))
        times = [_curve(label, {at: point.latency for at, point in by_x.items()}) for label, by_x in by_label.items()]
        figures.append(Figure(f"Seconds a request{name}", draw(times, y_label="seconds")))
    repeats = max(
        point.repeats for by_label in panels.values() for by_x in by_label.values() for point in by_x.values()
    )
    band = f"least to most of {repeats} repetitions" if repeats > 1 else "the middle half of a run's requests"
    lead = f"Lines: medians; bands: {band}. Above the dashed line, splitting wins."
    if len(panels) > MOST_PANELS:
        lead += f" The first {MOST_PANELS} of {len(panels)} settings; the table above has all."
    return Section("latency", "Latency and speed-up", lead, figures=tuple(figures))


def _break_even(panels: dict[Panel, dict[str, dict[float, Point]]], along: str) -> Section:
    """Say from or up to which value each label is faster than one device."""
    rows: list[Row] = []
    unit = _unit(along)
    for panel, by_label in panels.items():
        for label, by_x in by_label.items():
            curve = [(at, point.speedup[0]) for at, point in by_x.items() if point.speedup and at > 0]
            if curve and any(gain != 1.0 for _, gain in curve):
                best = max(curve, key=lambda pair: pair[1])
                rows.append(
                    {
                        **dict(panel),
                        "strategy": label,
                        "wins": break_even.describe(curve, unit),
                        "best_speedup": best[1],
                        f"best at, {unit}": best[0],
                        f"measured, {unit}": f"{min(curve)[0]:g} to {max(curve)[0]:g}",
                    }
                )
    title = "Break-even" if along.endswith("rate_mbps") else f"Break-even over {_unit(along)}"
    if not rows:
        return Section("break-even", title, missing=("No run compares with one device (speedup_vs_single).",))
    lead = (
        "Where a strategy is at least as fast as one device. Between measured points the speed-up is taken for a "
        "straight line over the logarithm; beyond them nothing is claimed."
    )
    return Section("break-even", title, lead, tables=(table("Where splitting wins", rows),))


def _time(cells: Cells, along: str) -> Section:
    """Draw the parts of a request for each label along the axis."""
    found: dict[tuple[Panel, str], dict[float, dict[str, float]]] = {}
    order: list[str] = []
    for setting, run in cells:
        requests = run.rows("requests")
        order += [name for name in part_names(requests)[:-1] if name not in order]
        for label, parts in by_strategy(requests).items():
            found.setdefault((_panel(setting, along), label), {})[numbers([setting], along)[0]] = parts
    title = "Where the time goes"
    if not found:
        return Section("time", title, missing=("No run has a requests.csv that names parts of a request.",))
    figures = []
    for (panel, label), by_x in list(found.items())[: 2 * MOST_PANELS]:
        bars = [
            plots.Stack(f"{at:g}", {name: 1e3 * seconds for name, seconds in parts.items()})
            for at, parts in sorted(by_x.items())
        ]
        name = f"{label}, {_named(panel)}" if panel else label
        chart = plots.stacks(bars, label="milliseconds", order=[*order, UNTOLD], upright=True)
        figures.append(Figure(name, chart))
    lead = f"Mean over a run's requests, by {_unit(along)}; of repetitions the last. Each run's own report has layers."
    if len(found) > 2 * MOST_PANELS:
        lead += f" The first {2 * MOST_PANELS} of {len(found)} charts."
    return Section("time", title, lead, figures=tuple(figures))


def _point(members: Sequence[tuple[Row, plots.Spread]]) -> Point:
    """Put repetitions together; a single run's spread is that of its requests."""
    spreads = [spread for _, spread in members]
    medians = [spread.value for spread in spreads]
    gains = [gain for row, _ in members for gain in numbers([row], outcome.SPEEDUP)]
    if len(members) > 1:
        speedup = (middle(gains), min(gains), max(gains)) if gains else None
        return Point((middle(medians), min(medians), max(medians)), speedup, len(members))
    only = spreads[0]
    one_s = gains[0] * only.value if gains else 0.0
    speedup = (gains[0], one_s / only.high, one_s / only.low) if gains else None
    return Point((only.value, only.low, only.high), speedup, 1)


def _curve(label: str, by_x: dict[float, tuple[float, float, float] | None]) -> plots.Curve:
    known = {at: values for at, values in by_x.items() if values is not None}
    columns = [[values[place] for values in known.values()] for place in range(3)]
    return plots.Curve(label, list(known), columns[0], columns[1], columns[2], group=label.split()[0])


def _panel(setting: Setting, along: str) -> Panel:
    return tuple((name, value) for name, value in setting.items() if name != along)


def _named(panel: Panel) -> str:
    return ", ".join(_with_unit(name, value) for name, value in panel)


def _with_unit(name: str, value: object) -> str:
    last = name.rpartition(".")[2]
    what = last.rpartition("_")[0] or last
    said = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{said} devices" if last == "count" else f"{what} {said} {UNITS.get(last, '')}".strip()


def _unit(along: str) -> str:
    last = along.rpartition(".")[2]
    return UNITS.get(last, last)


def _is_wide(by_label: dict[str, dict[float, Point]]) -> bool:
    """Whether the values on the axis are positive and spread over more than a few times the least."""
    xs = [at for by_x in by_label.values() for at in by_x]
    return min(xs) > 0 and max(xs) > 4 * min(xs)
