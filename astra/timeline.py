"""Where the time of a request goes, on one rank: spans by name and layer.

    timeline.begin_request(3)
    with timeline.span("encode", layer):   # half a microsecond, a tuple, nothing else
        ...

Spans do not nest, so the sum of a request's spans is at most its duration and what is missing is untold
time. Clocks are `time.perf_counter_ns`: on Linux one clock for all processes of a machine, so ranks of one
machine line up in a trace; ranks of several machines do not, but each one's durations hold.

The trace is Chrome's JSON, which Perfetto (ui.perfetto.dev) opens: a track for each rank.
"""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgpack

from astra.errors import WireError

__all__ = ["NO_LAYER", "Span", "Timeline"]

NO_LAYER = -1
"""The layer of a span that belongs to none, such as embedding."""

_NS_PER_S = 1e9
_NS_PER_US = 1e3
_PID = 1


class Span(NamedTuple):
    """One stretch of time; `begin_ns` and `end_ns` are readings of `time.perf_counter_ns`."""

    request: int
    name: str
    layer: int
    begin_ns: int
    end_ns: int


class Timeline:
    """The spans of one rank; its own context manager, so that a span allocates nothing but its record."""

    def __init__(self, rank: int):
        self.rank = rank
        self._request = 0
        self._records: list[tuple[int, str, int, int, int]] = []
        self._name = ""
        self._layer = NO_LAYER
        self._begin_ns = 0

    def begin_request(self, request: int) -> None:
        """Count the spans that follow to this request."""
        assert not self._begin_ns, f"request {request} begins inside the span {self._name!r}"
        self._request = request

    def span(self, name: str, layer: int = NO_LAYER) -> Self:
        """Measure a `with` block; spans must not nest."""
        assert not self._begin_ns, f"the span {name!r} begins inside the span {self._name!r}; spans do not nest"
        self._name = name
        self._layer = layer
        return self

    def __enter__(self) -> None:
        self._begin_ns = time.perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_ns = time.perf_counter_ns()
        self._records.append((self._request, self._name, self._layer, self._begin_ns, end_ns))
        self._begin_ns = 0

    @property
    def spans(self) -> tuple[Span, ...]:
        """All spans so far, in order."""
        return tuple(Span(*record) for record in self._records)

    def totals(self, request: int) -> dict[str, float]:
        """Add up the seconds of a request's spans, by name, in order of first appearance."""
        total_ns: dict[str, int] = {}
        for span_request, name, _, begin_ns, end_ns in self._records:
            if span_request == request:
                total_ns[name] = total_ns.get(name, 0) + end_ns - begin_ns
        return {name: duration / _NS_PER_S for name, duration in total_ns.items()}

    def to_bytes(self) -> bytes:
        """Pack the spans, to be sent to the rank that writes the trace of all."""
        packed: bytes = msgpack.packb([self.rank, self._records])
        return packed

    @classmethod
    def from_bytes(cls, buffer: bytes | bytearray | memoryview) -> "Timeline":
        """Unpack what another rank's `to_bytes` made.

        Raises:
            WireError: the bytes are something else.
        """
        try:
            rank, records = msgpack.unpackb(buffer)
            spans = [Span(*record) for record in records]
        except (ValueError, TypeError, msgpack.UnpackException) as error:
            raise WireError(f"timeline: bytes must be a packed timeline, got {error}; send to_bytes()") from error
        timeline = cls(rank)
        timeline._records.extend(spans)
        return timeline

    def write_chrome_trace(self, path: Path, others: Iterable["Timeline"] = ()) -> None:
        """Write the spans of this rank, and of other ranks if given, as one trace."""
        timelines = sorted((self, *others), key=lambda timeline: timeline.rank)
        events = [_metadata("process_name", 0, "astra")]
        for timeline in timelines:
            events.append(_metadata("thread_name", timeline.rank, f"rank {timeline.rank}"))
            events.extend(_event(timeline.rank, span) for span in timeline.spans)
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def _metadata(kind: str, rank: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": _PID, "tid": rank, "args": {"name": name}}


def _event(rank: int, span: Span) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": span.name,
        "cat": f"layer {span.layer}" if span.layer != NO_LAYER else "request",
        "pid": _PID,
        "tid": rank,
        "ts": span.begin_ns / _NS_PER_US,
        "dur": (span.end_ns - span.begin_ns) / _NS_PER_US,
        "args": {"request": span.request, "layer": span.layer},
    }
