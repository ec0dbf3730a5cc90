"""Where the time of a request goes, on one rank: spans by name and layer.

    timeline.begin_request(3)
    with timeline.span("encode", layer):   # half a microsecond, a tuple, nothing else
        ...

Spans do not nest, so the sum of a request's spans is at most its duration and what is missing is untold
time. Clocks are `time.perf_counter_ns`: on Linux one clock for all processes of a machine, so ranks of one
machine line up in a trace; ranks of several machines do not, but each one's durations hold.

The trace is Chrome's JSON, which Perfetto (ui.perfetto.dev) opens. A rank is a track of slices in slices, and a message
that left and came inside spans is an arrow from one track to another:

    rank 0   request 3 [ embed | layer 0 [ encode | send | wait | remote | attention | rest ] | layer 1 [ … ] … ]
                                                    └──codes──┐
    rank 1   request 3 [ embed | layer 0 [ encode | send | wait | remote | attention | rest ] | layer 1 [ … ] … ]

Datagrams have no arrows: nobody can say which of two copies was the one that counted.
"""

import bisect
import itertools
import json
import time
import zlib
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgpack

from astra.errors import WireError
from astra.transport.listening import Message

__all__ = ["NO_LAYER", "Mark", "Span", "Timeline"]

NO_LAYER = -1
"""The layer of a span that belongs to none, such as embedding."""

MAX_PACKED_BYTES = 1 << 28
"""Of one rank, unpacked; what is said to be larger is no timeline."""

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


class Mark(NamedTuple):
    """A moment with a name, such as the begin of a strategy's measured requests."""

    name: str
    at_ns: int


class Timeline:
    """The spans of one rank; its own context manager, so that a span allocates nothing but its record."""

    def __init__(self, rank: int, messages: Sequence[Message] = ()):
        self.rank = rank
        self.messages = messages
        """What the rank has sent and received; may grow."""
        self.marks: list[Mark] = []
        self._request = 0
        self._records: list[tuple[int, str, int, int, int]] = []
        self._name = ""
        self._layer = NO_LAYER
        self._begin_ns = 0

    def after(self, earlier: "Timeline") -> Self:
        """Put the spans and marks of an earlier stretch of the run before this one's; return this one."""
        self._records, self.marks = [*earlier._records, *self._records], [*earlier.marks, *self.marks]
        return self

    def begin_request(self, request: int) -> None:
        """Count the spans that follow to this request."""
        assert not self._begin_ns, f"request {request} begins inside the span {self._name!r}"
        self._request = request

    def mark(self, name: str) -> None:
        """Note that something begins or ends now."""
        self.marks.append(Mark(name, time.perf_counter_ns()))

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
        """Pack everything small, to be sent over slow links to the rank that writes the trace of all."""
        packed: bytes = msgpack.packb([self.rank, self._records, self.messages, self.marks])
        return zlib.compress(packed)

    @classmethod
    def from_bytes(cls, buffer: bytes | bytearray | memoryview) -> "Timeline":
        """Unpack what another rank's `to_bytes` made.

        Raises:
            WireError: the bytes are something else.
        """
        try:
            unpacked = zlib.decompressobj().decompress(buffer, MAX_PACKED_BYTES)
            rank, records, noted, marks = msgpack.unpackb(unpacked)
            spans = [Span(*record) for record in records]
            timeline = cls(rank, [Message(*message) for message in noted])
            timeline.marks.extend(Mark(*mark) for mark in marks)
        except (ValueError, TypeError, zlib.error, msgpack.UnpackException) as error:
            raise WireError(f"timeline: bytes must be a packed timeline, got {error}; send to_bytes()") from error
        timeline._records.extend(spans)
        return timeline

    def write_chrome_trace(self, path: Path, others: Iterable["Timeline"] = ()) -> None:
        """Write this rank, and others if given, as one trace."""
        timelines = sorted((self, *others), key=lambda timeline: timeline.rank)
        events = [_metadata("process_name", 0, "astra")]
        for timeline in timelines:
            events.append(_metadata("thread_name", timeline.rank, f"rank {timeline.rank}"))
            events.extend(_slices(timeline.rank, timeline.spans))
            events.extend(_instant(timeline.rank, mark) for mark in timeline.marks)
        events.extend(_arrows(timelines))
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def _metadata(kind: str, rank: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": _PID, "tid": rank, "args": {"name": name}}


def _slices(rank: int, spans: Sequence[Span]) -> Iterator[dict[str, Any]]:
    """Yield a slice for each stretch of spans of one request, in it one for each layer, in it those of the spans."""
    for request, of_request in itertools.groupby(spans, key=lambda span: span.request):
        stretch = list(of_request)
        yield _slice(rank, "requests", f"request {request}", (stretch[0], stretch[-1]), {"request": request})
        for layer, of_layer in itertools.groupby(stretch, key=lambda span: span.layer):
            parts, about = list(of_layer), {"request": request, "layer": layer}
            if layer != NO_LAYER:
                yield _slice(rank, "layers", f"layer {layer}", (parts[0], parts[-1]), about)
            for span in parts:
                yield _slice(rank, "spans", span.name, (span, span), about)


def _slice(rank: int, category: str, name: str, ends: tuple[Span, Span], about: dict[str, int]) -> dict[str, Any]:
    begin_ns, end_ns = ends[0].begin_ns, ends[1].end_ns
    return {
        **_event("X", rank, name, begin_ns),
        "cat": category,
        "dur": (end_ns - begin_ns) / _NS_PER_US,
        "args": about,
    }


def _instant(rank: int, mark: Mark) -> dict[str, Any]:
    return {**_event("i", rank, mark.name, mark.at_ns), "cat": "marks", "s": "t"}


def _arrows(timelines: Sequence[Timeline]) -> Iterator[dict[str, Any]]:
    """Yield both ends of every message of which both are known and lie inside spans, as viewers want it."""
    spans = {timeline.rank: timeline.spans for timeline in timelines}
    sent: dict[tuple[Any, ...], deque[Message]] = defaultdict(deque)
    for timeline in timelines:
        for message in timeline.messages:
            if not message.received:
                sent[*message[:3], timeline.rank, message.peer].append(message)
    number = itertools.count(1)
    for timeline in timelines:
        for came in (message for message in timeline.messages if message.received):
            waiting = sent[*came[:3], came.peer, timeline.rank]
            left = waiting.popleft() if waiting else None
            if left and _inside(spans[came.peer], left.at_ns) and _inside(spans[timeline.rank], came.at_ns):
                arrow = {"cat": "messages", "id": next(number)}
                yield {**_event("s", came.peer, came.phase, left.at_ns), **arrow}
                yield {**_event("f", timeline.rank, came.phase, came.at_ns), **arrow, "bp": "e"}


def _inside(spans: Sequence[Span], at_ns: int) -> bool:
    """Whether a span covers a moment; spans are in order and do not overlap."""
    place = bisect.bisect_right(spans, at_ns, key=lambda span: span.begin_ns)
    return place > 0 and at_ns <= spans[place - 1].end_ns


def _event(kind: str, rank: int, name: str, at_ns: int) -> dict[str, Any]:
    return {"ph": kind, "name": name, "pid": _PID, "tid": rank, "ts": at_ns / _NS_PER_US}
