"""How well links followed their recordings, from the rows of `events`. Pure.

    recording: rates by time ──> asked bits             from the first change to the last that happened
    rows of `events`: rates, and when they really were ──> offered bits: what the link could carry
                      bytes delivered and waiting   ──> delivered bits: what it carried, while it was busy

A link offers less or more where a change was late, and where an outage became the slowest rate that links have. It can
only deliver what it is given, so delivered bits count where packets waited for it at two changes in a row, and are held
against what the recording delivers between the same two moments. A link that was idle in between counts as too slow.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from testbed.event_row import Row
from testbed.event_schema import Event
from testbed.scenario import Scenario
from testbed.traces import Course, steps_of

__all__ = ["trace_rows"]


@dataclass(frozen=True)
class _Busy:
    """What a link did while packets waited for it."""

    seconds: float
    asked_bits: float
    delivered_bits: float


def trace_rows(scenario: Scenario, events: Sequence[Row]) -> list[Row]:
    """Return a row for every link and recording of which at least two changes have happened."""
    rows: list[Row] = []
    for number, event in enumerate(scenario.events):
        if event.trace is None:
            continue
        own = [row for row in events if row["event"] == number]
        for source, destination in dict.fromkeys((row["source"], row["destination"]) for row in own):
            changes = [row for row in own if (row["source"], row["destination"]) == (source, destination)]
            if len(changes) > 1:
                changes.sort(key=lambda row: _number(row, "intended_s"))
                ends: Row = {"event": number, "source": source, "destination": destination, "changes": len(changes)}
                rows.append({**ends, **_judged(event, event.trace.course(), changes)})
    return rows


def _judged(event: Event, course: Course, changes: Sequence[Row]) -> Row:
    """Return asked, offered and delivered bits of one link."""
    loop = event.trace is not None and event.trace.loop
    asked = _asked_bits(course, loop, [_number(change, "intended_s") - event.at_s for change in changes])
    offered = sum(
        1e6 * _number(now, "rate_mbps") * (_number(then, "applied_s") - _number(now, "applied_s"))
        for now, then in itertools.pairwise(changes)
    )
    busy = _busy(event, course, changes)
    return {
        "asked_bits": round(asked),
        "offered_bits": round(offered),
        "error_pct": _error_pct(offered, asked),
        "busy_s": round(busy.seconds, 3),
        "busy_asked_bits": round(busy.asked_bits),
        "busy_delivered_bits": round(busy.delivered_bits),
        "delivered_error_pct": _error_pct(busy.delivered_bits, busy.asked_bits),
    }


def _busy(event: Event, course: Course, changes: Sequence[Row]) -> _Busy:
    """Add up the stretches between two changes at both of which packets waited."""
    loop = event.trace is not None and event.trace.loop
    seconds = asked = delivered = 0.0
    for now, then in itertools.pairwise(changes):
        if now.get("waiting_bytes") and then.get("waiting_bytes"):
            begin_s, end_s = _number(now, "sampled_s"), _number(then, "sampled_s")
            seconds += end_s - begin_s
            asked += _asked_bits(course, loop, [begin_s - event.at_s, end_s - event.at_s])
            delivered += 8 * (_number(then, "delivered_bytes") - _number(now, "delivered_bytes"))
    return _Busy(seconds, asked, delivered)


def _error_pct(got: float, asked: float) -> float | None:
    return round(100 * (got - asked) / asked, 4) if asked else None


def _asked_bits(course: Course, loop: bool, times: Sequence[float]) -> float:
    """Add up what the recording delivers between the first and the last of `times`, in seconds from its start."""
    begin_s, end_s = times[0], times[-1]
    bits, steps = 0.0, itertools.chain(steps_of(course, loop=loop), [(float("inf"), course.steps[-1])])
    for (at_s, step), (next_s, _) in itertools.pairwise(steps):
        if at_s >= end_s:
            break
        bits += step.rate_bps * max(0.0, min(next_s, end_s) - max(at_s, begin_s))
    return bits


def _number(row: Row, name: str) -> float:
    value = row[name]
    return float(value) if isinstance(value, int | float) else 0.0
