"""Recorded courses of a link, as mahimahi or CSV text, to steps in time. Pure.

    mahimahi: a line a delivery opportunity (ms)    ──┐
    csv: seconds, Mbps[, delay in ms[, loss in %]]  ──┴─ read ──> Course(steps, duration) ── steps_of ──> (at_s, Step) …

A mahimahi opportunity carries one full packet, so it counts as one Ethernet frame of 1514 bytes, as links count. They
are put together to a rate per 100 ms: shorter would be bursts of single frames, which the queue of the emulated link
evens out anyway; longer would hide fades that applications feel. A link cannot be slower than `LEAST_RATE_BPS`, so an
outage is replayed at that rate by whoever applies the steps.

Source: "mahimahi" record-and-replay traces, R. Netravali et al., USENIX ATC 2015.
"""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["LEAST_RATE_BPS", "Course", "Step", "TraceError", "read", "steps_of"]

FRAME_BITS = 1514 * 8
BIN_MS = 100
LEAST_RATE_BPS = 1e5
"""One full frame in 121 ms. A frame that has been sent keeps its link busy for its time, whatever the rate becomes."""
MOST_RATE_BPS = 1e10
MOST_DELAY_S = 60.0
COLUMNS = ("seconds", "rate_mbps", "delay_ms", "loss_pct")
HOUR_S = 3600.0
LONGEST_S = 24 * HOUR_S


class TraceError(ValueError):
    """A recording that is none. `must_be` and `todo` are the parts of a fault's line."""

    def __init__(self, must_be: str, todo: str):
        super().__init__(f"must be {must_be}; {todo}")
        self.must_be, self.todo = must_be, todo


@dataclass(frozen=True)
class Step:
    """What holds from a moment on; None leaves a setting as it is."""

    rate_bps: float
    """As recorded: 0 in an outage."""
    delay_s: float | None = None
    loss: float | None = None
    """Bernoulli probability, 0 to 1."""


@dataclass(frozen=True)
class Course:
    """Steps in order, the first at 0 s; after `duration_s` they begin again or the last one stays."""

    at_s: tuple[float, ...]
    steps: tuple[Step, ...]
    duration_s: float

    @property
    def bits(self) -> float:
        """How many bits the recorded link let pass from beginning to end."""
        ends = (*self.at_s[1:], self.duration_s)
        return sum(step.rate_bps * (end - at) for step, at, end in zip(self.steps, self.at_s, ends, strict=True))


def read(text: str, form: str) -> Course:
    """Read a recording in the form `mahimahi` or `csv`. Raises TraceError, naming the line."""
    return _read_mahimahi(text) if form == "mahimahi" else _read_csv(text)


def steps_of(course: Course, *, loop: bool) -> Iterator[tuple[float, Step]]:
    """Yield when each step begins, in seconds from the course's start; for ever if `loop` is set."""
    round_s = 0.0
    while True:
        for at_s, step in zip(course.at_s, course.steps, strict=True):
            yield round_s + at_s, step
        if not loop:
            return
        round_s += course.duration_s


def _read_mahimahi(text: str) -> Course:
    """Count opportunities per `BIN_MS`. The recording ends, and begins again, at its last opportunity."""
    times: list[int] = []
    for number, line in enumerate(text.splitlines(), start=1):
        word = line.strip()
        if not (word.isascii() and word.isdigit()):
            raise TraceError("one whole number of milliseconds a line", f"correct line {number}, {word[:40]!r}")
        if times and int(word) < times[-1]:
            raise TraceError("a list of times that never go back", f"correct line {number}, {word} after {times[-1]}")
        times.append(int(word))
    if not times or times[-1] == 0:
        raise TraceError("a recording that lasts", "its last line says when it ends, in ms")
    end_ms = times[-1]
    _check_length(end_ms / 1000)
    # An opportunity at the very end belongs to the last bin.
    counts = Counter(min(at, end_ms - 1) // BIN_MS for at in times)
    at_s: list[float] = []
    steps: list[Step] = []
    for begin_ms in range(0, end_ms, BIN_MS):
        lasts_s = (min(begin_ms + BIN_MS, end_ms) - begin_ms) / 1000
        rate_bps = min(counts[begin_ms // BIN_MS] * FRAME_BITS / lasts_s, MOST_RATE_BPS)
        if not steps or steps[-1].rate_bps != rate_bps:
            at_s.append(begin_ms / 1000)
            steps.append(Step(rate_bps))
    return Course(tuple(at_s), tuple(steps), end_ms / 1000)


def _read_csv(text: str) -> Course:
    """Read rows of seconds and settings; time begins at the first row, the last one lasts as long as that before."""
    rows = [
        (number, [cell.strip() for cell in cells])
        for number, cells in enumerate(csv.reader(text.splitlines()), start=1)
        if cells and not cells[0].lstrip().startswith("#")
    ]
    columns: tuple[str, ...] = COLUMNS
    if rows and rows[0][1][0] in COLUMNS:
        columns = tuple(rows.pop(0)[1])
        if len(set(columns)) < len(columns) or not {*COLUMNS[:2]} <= {*columns} <= {*COLUMNS}:
            raise TraceError(f"a table of {', '.join(COLUMNS)}, the last two if wanted", f"correct {','.join(columns)}")
    if not rows:
        raise TraceError("a table of at least one row", f"write {', '.join(COLUMNS)}")
    parsed = [_row(number, columns, cells) for number, cells in rows]
    begin_s = parsed[0][0]
    at_s = [seconds - begin_s for seconds, _ in parsed]
    for (number, _), before, after in zip(rows[1:], at_s, at_s[1:], strict=False):
        if after <= before:
            raise TraceError("a table whose seconds grow", f"correct line {number}")
    _check_length(at_s[-1])
    last_s = at_s[-1] - at_s[-2] if len(at_s) > 1 else 1.0
    return Course(tuple(at_s), tuple(step for _, step in parsed), at_s[-1] + last_s)


def _row(number: int, columns: Sequence[str], cells: Sequence[str]) -> tuple[float, Step]:
    """Return the seconds and the step of one row."""
    optional = len(columns) - 2 if columns == COLUMNS else 0  # without a header, the last columns may be missing
    if not len(columns) - optional <= len(cells) <= len(columns):
        raise TraceError(f"a table of {', '.join(columns)}", f"correct line {number}, which has {len(cells)} columns")
    try:
        found = dict(zip(columns, map(float, cells), strict=False))
    except ValueError:
        raise TraceError("a table of numbers", f"correct line {number}, {','.join(cells)[:40]!r}") from None
    limits = {"rate_mbps": MOST_RATE_BPS / 1e6, "delay_ms": MOST_DELAY_S * 1e3, "loss_pct": 100.0}
    for name, most in limits.items():
        if name in found and not 0 <= found[name] <= most:
            raise TraceError(f"a table whose {name} is from 0 to {most:g}", f"correct line {number}, {found[name]:g}")
    if not abs(found["seconds"]) < float("inf"):
        raise TraceError("a table of finite seconds", f"correct line {number}")
    delay_ms, loss_pct = found.get("delay_ms"), found.get("loss_pct")
    return found["seconds"], Step(
        rate_bps=found["rate_mbps"] * 1e6,
        delay_s=None if delay_ms is None else delay_ms / 1000,
        loss=None if loss_pct is None else loss_pct / 100,
    )


def _check_length(duration_s: float) -> None:
    if duration_s > LONGEST_S:
        raise TraceError(f"a recording of at most {LONGEST_S / HOUR_S:g} hours", f"shorten its {duration_s:g} s")
