"""What the links were asked for and what they did: traffic, calibration, events, rates over time."""

from collections.abc import Mapping, Sequence
from typing import Any

from testbed import plots
from testbed.record import Row
from testbed.report.folder import RunFolder
from testbed.report.model import Figure, Section, table
from testbed.report.rows import labelled, middle, numbers, percentile

__all__ = ["CALIBRATION", "calibration", "calibration_of", "events", "rates", "traffic"]

CALIBRATION = "Calibration"
BYTES = "bytes_per_request_"
MOST_LINKS = 24
"""Of which the rate is drawn."""
ALL_LOST_PCT = 100.0

Link = tuple[str, str]


def traffic(run: RunFolder) -> Section:
    """Return bytes asked and counted, by strategy and by link."""
    missing, figures, tables = [], [], []
    rows = _bytes_by_label(run.rows("summary"))
    if rows:
        chart = plots.points(rows, x_label="bytes a request, all links together", log=True)
        note = "Predicted: payload by formula; expected: with all that goes with it; counted: by the kernel."
        figures.append(Figure("Bytes a request", chart, f"{note} What is 0 has no place on this axis."))
    else:
        missing.append(f"No bytes by strategy: summary.csv is missing or has no columns {BYTES}….")
    links = run.rows("links")
    if links:
        tables.append(table("Every link: asked and counted (links.csv)", links, folded=len(links) > 12))
    else:
        missing.append(run.why_missing("links.csv"))
    lead = (
        "Asked for against counted. Counted are Ethernet frames with their headers, lost ones included."
        if rows or links
        else ""
    )
    return Section("traffic", "Traffic", lead, tuple(missing), tuple(figures), tuple(tables))


def calibration(run: RunFolder) -> Section:
    """Return how true every link was before the run."""
    rows = run.rows("calibration")
    if not rows:
        return Section("calibration", CALIBRATION, missing=(run.why_missing("calibration.csv"),))
    return calibration_of(rows, "calibration.csv")


def calibration_of(rows: list[Row], source: str) -> Section:
    """Return how true links were, from rows of one run or of several."""
    off = sum(row.get("ok") is not True for row in rows)
    lead = f"Every link, before the program started: {len(rows)} measurements, {off or 'none'} out of tolerance."
    judged = deviations(rows)
    chart = plots.points(judged, x_label="error, in tolerances (green: within)", band=plots.Span(-1, 1))
    figures = (Figure("Measured against asked", chart, "A dot is a link; 0 is just what was asked."),) if judged else ()
    tables = (table(source, rows, folded=len(rows) > 20, source=source),)
    return Section("calibration", CALIBRATION, lead, (), figures, tables)


def deviations(rows: Sequence[Row]) -> list[tuple[str, dict[str, list[float]]]]:
    """Return errors in tolerances by metric; without those of which nothing was asked or nothing is tolerated."""
    found: dict[str, list[float]] = {}
    for row in rows:
        asked, measured, tolerance = (numbers([row], name) for name in ("asked", "measured", "tolerance"))
        if asked and measured and tolerance and tolerance[0] > 0:
            found.setdefault(str(row.get("metric")), []).append((measured[0] - asked[0]) / tolerance[0])
    return [(metric.replace("_", " "), {"links": values}) for metric, values in found.items()]


def events(run: RunFolder) -> Section:
    """Return what happened when, and how late."""
    rows, title = run.rows("events"), "Events"
    if not rows:
        return Section("events", title, missing=(run.why_missing("events.csv"),))
    scheduled = run.scenario.get("events") or []
    by_event: dict[int, list[Row]] = {}
    for row in sorted(rows, key=lambda row: _number(row, "event")):
        by_event.setdefault(int(_number(row, "event")), []).append(row)
    names = {number: f"{number} {_describe(scheduled, number, own[0])}" for number, own in by_event.items()}
    moments = [(names[number], numbers(own, "applied_s")) for number, own in by_event.items()]
    lateness = [_lateness(names[number], own) for number, own in by_event.items() if numbers(own, "late_ms")]
    late = numbers(rows, "late_ms")
    lead = (
        f"{len(rows)} changes; late by {middle(late):.2g} ms in the middle, {percentile(late, 95):.3g} ms at the 95th "
        f"percentile, {max(late):.3g} ms at most. Numbers are places in the scenario's list."
        if late
        else f"{len(rows)} changes."
    )
    figures = [Figure("When each change happened", plots.moments(moments, end=_end_s(rows)))]
    if lateness:
        figures.append(Figure("How late changes were", plots.spreads(lateness, x_label="milliseconds")))
    return Section(
        "events", title, lead, (), tuple(figures), (table("events.csv", rows, folded=True, source="events.csv"),)
    )


def rates(run: RunFolder) -> Section:
    """Return the rate of every link that changed, as time went by."""
    title, links, changes = "Rates over time", run.rows("links"), run.rows("events")
    by_link: dict[Link, list[Row]] = {}
    for row in changes:
        if row.get("source") is not None and numbers([row], "rate_mbps"):
            by_link.setdefault((str(row["source"]), str(row["destination"])), []).append(row)
    if not by_link:
        why = "no event changed a link" if links or changes else "neither links.csv nor events.csv is there"
        return Section("rates", title, missing=(f"Nothing to draw: {why}.",))
    asked = {(str(row["source"]), str(row["destination"])): numbers([row], "rate_mbps") for row in links}
    top = max(_number(row, "rate_mbps") for own in by_link.values() for row in own)
    top, end = max([top, *(rate for found in asked.values() for rate in found)]), _end_s(changes)
    shown = sorted(by_link)[:MOST_LINKS]
    figures = []
    for link in shown:
        own = sorted(by_link[link], key=lambda row: _number(row, "applied_s"))
        course = [(0.0, rate) for rate in asked.get(link, [])]
        course += [(_number(row, "applied_s"), _number(row, "rate_mbps")) for row in own]
        chart = plots.steps(course, end=end, y_label="Mbps", cut=_cuts(own, end), top=top)
        figures.append(Figure(" → ".join(link), chart))
    constant = len(asked.keys() - by_link.keys())
    lead = "As the kernel was told, at the time when it was; red where every packet was lost."
    lead += f" {constant} other links kept their rate." if constant else ""
    lead += f" {len(by_link) - len(shown)} more links changed: see events.csv." if len(by_link) > len(shown) else ""
    recordings = run.rows("traces")
    tables = (table("How well links followed their recordings (traces.csv)", recordings),) if recordings else ()
    return Section("rates", title, lead, (), tuple(figures), tables)


def _bytes_by_label(rows: Sequence[Row]) -> list[tuple[str, dict[str, list[float]]]]:
    found = []
    for label, row in labelled(rows).items():
        named = {name.removeprefix(BYTES): numbers([row], name) for name in row if name.startswith(BYTES)}
        positive = {name: [value for value in values if value > 0] for name, values in named.items()}
        if any(positive.values()):
            found.append((label, positive))
    return found


def _describe(scheduled: Sequence[Mapping[str, Any]], number: int, row: Row) -> str:
    """Say in a few words what an event is."""
    event = scheduled[number] if number < len(scheduled) else {}
    if "trace" in event:
        return f"recording {row.get('source')}→{row.get('destination')}"
    what = event.get("action") or (" ".join(event["set"]) if event.get("set") else str(row.get("action")))
    where = event.get("device") or _ends(event.get("link") or {}) or str(row.get("destination"))
    return f"{what.replace('_mbps', '').replace('_pct', '')} {where}"


def _ends(link: Mapping[str, Any]) -> str:
    if "between" in link:
        return "↔".join(map(str, link["between"]))
    return f"{link['from']}→{link['to']}" if {"from", "to"} <= link.keys() else ""


def _lateness(label: str, rows: Sequence[Row]) -> plots.Spread:
    late = numbers(rows, "late_ms")
    return plots.Spread(label, middle(late), percentile(late, 25), percentile(late, 75), late)


def _cuts(changes: Sequence[Row], end: float) -> list[plots.Span]:
    """Return when a link lost every packet."""
    cuts, since = [], None
    for row in changes:
        is_cut = _number(row, "loss_pct") >= ALL_LOST_PCT
        if is_cut and since is None:
            since = _number(row, "applied_s")
        elif not is_cut and since is not None:
            cuts.append(plots.Span(since, _number(row, "applied_s")))
            since = None
    return cuts if since is None else [*cuts, plots.Span(since, end)]


def _end_s(rows: Sequence[Row]) -> float:
    return 1.03 * max([1e-3, *numbers(rows, "applied_s")])


def _number(row: Row, name: str) -> float:
    return next(iter(numbers([row], name)), 0.0)
