"""Spans, their sums, and the trace that Perfetto opens."""

import json
import time
from itertools import pairwise
from pathlib import Path

import msgpack
import pytest

from astra.errors import WireError
from astra.timeline import NO_LAYER, Timeline
from astra.transport.listening import Message

SLEEP_S = 0.01
ROUNDING_US = 1e-3
"""Of times since the machine's start in microseconds: a float of 1e10 still tells nanoseconds apart."""


def two_requests(rank: int = 0) -> Timeline:
    timeline = Timeline(rank)
    for request in range(2):
        timeline.begin_request(request)
        with timeline.span("embed"):
            time.sleep(SLEEP_S)
        for layer in range(3):
            with timeline.span("encode", layer):
                pass
    return timeline


def test_timeline_adds_up_each_request_by_name() -> None:
    timeline = two_requests()
    totals = timeline.totals(1)
    assert list(totals) == ["embed", "encode"]
    assert SLEEP_S <= totals["embed"] < SLEEP_S + 1
    encodes = [span for span in timeline.spans if (span.request, span.name) == (1, "encode")]
    assert totals["encode"] == pytest.approx(sum(span.end_ns - span.begin_ns for span in encodes) / 1e9)
    assert timeline.totals(2) == {}


def test_timeline_keeps_spans_in_order() -> None:
    spans = two_requests().spans
    assert [(span.request, span.name, span.layer) for span in spans[:3]] == [
        (0, "embed", NO_LAYER),
        (0, "encode", 0),
        (0, "encode", 1),
    ]
    for before, after in pairwise(spans):
        assert before.begin_ns <= before.end_ns <= after.begin_ns


def test_timeline_refuses_nested_spans() -> None:
    timeline = Timeline(0)
    with timeline.span("outer"):
        with pytest.raises(AssertionError, match=r"span 'inner' begins inside .*'outer'"):
            timeline.span("inner")
        with pytest.raises(AssertionError, match="request 3 begins inside the span 'outer'"):
            timeline.begin_request(3)
    assert [span.name for span in timeline.spans] == ["outer"]


def test_timeline_ends_a_span_that_fails() -> None:
    timeline = Timeline(0)
    with pytest.raises(ZeroDivisionError), timeline.span("encode"):
        raise ZeroDivisionError
    with timeline.span("send"):
        pass
    assert [span.name for span in timeline.spans] == ["encode", "send"]


def test_timeline_round_trips_through_bytes() -> None:
    timeline = two_requests(rank=3)
    timeline.messages = [Message(0, 1, "codes", 0, 17, received=True)]
    timeline.mark("astra G=1:begin")
    copy = Timeline.from_bytes(timeline.to_bytes())
    assert (copy.rank, copy.spans) == (3, timeline.spans)
    assert (copy.messages, copy.marks) == (timeline.messages, timeline.marks)


@pytest.mark.parametrize("junk", [b"", b"\xc1", msgpack.packb(7), msgpack.packb([0, [[1, 2]]]), msgpack.packb([0, 5])])
def test_timeline_refuses_other_bytes(junk: bytes) -> None:
    with pytest.raises(WireError, match=r"timeline: bytes must be"):
        Timeline.from_bytes(junk)


def test_timeline_writes_a_track_for_each_rank(tmp_path: Path) -> None:
    first, second = two_requests(0), two_requests(1)
    first.write_chrome_trace(tmp_path / "timeline.json", others=[second])
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    names = [(event["name"], event["tid"], event["args"]["name"]) for event in events if event["ph"] == "M"]
    assert names == [("process_name", 0, "astra"), ("thread_name", 0, "rank 0"), ("thread_name", 1, "rank 1")]
    spans = [event for event in events if event["ph"] == "X" and event["cat"] == "spans"]
    assert len(spans) == 16
    assert len({event["pid"] for event in events}) == 1
    embed = next(event for event in spans if event["tid"] == 1)
    assert embed["name"] == "embed"
    assert embed["ts"] == second.spans[0].begin_ns / 1e3
    assert embed["dur"] >= SLEEP_S * 1e6
    assert embed["args"] == {"request": 0, "layer": NO_LAYER}


def test_timeline_nests_spans_in_layers_in_requests(tmp_path: Path) -> None:
    two_requests().write_chrome_trace(tmp_path / "timeline.json")
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    slices = [event for event in events if event["ph"] == "X" and event["args"]["request"] == 1]
    names = [(event["cat"], event["name"]) for event in slices]
    layers = [pair for number in range(3) for pair in (("layers", f"layer {number}"), ("spans", "encode"))]
    assert names == [("requests", "request 1"), ("spans", "embed"), *layers]
    for outer, inner in ((0, 1), (0, -2), (-2, -1)):
        begin, end = (slices[inner]["ts"], slices[inner]["ts"] + slices[inner]["dur"])
        assert slices[outer]["ts"] <= begin
        assert end <= slices[outer]["ts"] + slices[outer]["dur"] + ROUNDING_US


def test_timeline_draws_an_arrow_for_each_message_within_spans(tmp_path: Path) -> None:
    first, second = Timeline(0), Timeline(1)
    sent, came = [], []
    with first.span("send", 0):
        sent = [Message(0, 0, "ring", 1, time.perf_counter_ns(), received=False) for _ in range(2)]
    with second.span("wait", 0):
        came = [Message(0, 0, "ring", 0, time.perf_counter_ns(), received=True) for _ in range(2)]
    outside = time.perf_counter_ns()
    first.messages = [*sent, Message(0, 1, "done", 1, outside, received=False)]
    second.messages = [
        *came,
        Message(0, 1, "done", 0, outside, received=True),
        Message(0, 9, "lost", 0, outside, received=True),
    ]
    first.write_chrome_trace(tmp_path / "timeline.json", others=[second])
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    begins, ends = ([event for event in events if event["ph"] == kind] for kind in "sf")
    assert [(event["tid"], event["name"], event["id"], event["ts"]) for event in begins] == [
        (0, "ring", 1, sent[0].at_ns / 1e3),
        (0, "ring", 2, sent[1].at_ns / 1e3),
    ]
    assert [(event["tid"], event["id"], event["bp"], event["ts"]) for event in ends] == [
        (1, 1, "e", came[0].at_ns / 1e3),
        (1, 2, "e", came[1].at_ns / 1e3),
    ]


def test_timeline_shows_marks(tmp_path: Path) -> None:
    timeline = two_requests()
    timeline.mark("single:begin")
    timeline.write_chrome_trace(tmp_path / "timeline.json")
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    (mark,) = (event for event in events if event["ph"] == "i")
    assert (mark["name"], mark["tid"], mark["ts"]) == ("single:begin", 0, timeline.marks[0].at_ns / 1e3)
