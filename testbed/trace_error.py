"""How well links followed their recordings, from the rows of `events`. Pure.

    recording: rates by time ──> asked bits          from the first change to the last that happened
    rows of `events`: rates, and when they really were ──> offered bits: what the link could carry

A link offers less or more where a change was late, and where an outage became the slowest rate that links have. What a
program made of the offer is in `links` and `marks`.
"""

import itertools
from collections.abc import Sequence

from testbed.event_row import Row
from testbed.scenario import Scenario
from testbed.traces import Course, steps_of

__all__ = ["trace_rows"]


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
                asked = _asked_bits(
                    event.trace.course(), event.trace.loop, [_number(c, "intended_s") - event.at_s for c in changes]
                )
                offered = sum(
                    1e6 * _number(now, "rate_mbps") * (_number(then, "applied_s") - _number(now, "applied_s"))
                    for now, then in itertools.pairwise(changes)
                )
                rows.append(
                    {
                        "event": number,
                        "source": source,
                        "destination": destination,
                        "changes": len(changes),
                        "asked_bits": round(asked),
                        "offered_bits": round(offered),
                        "error_pct": round(100 * (offered - asked) / asked, 4) if asked else None,
                    }
                )
    return rows


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
