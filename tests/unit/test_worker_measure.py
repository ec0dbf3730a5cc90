"""What becomes of measured requests: rows, link counters, expected bytes."""

from dataclasses import replace

import numpy as np
import pytest

from astra.config import AstraConfig, SingleConfig
from astra.counts import DatagramCounts, LinkTotals, RankCounts
from astra.measure import Answer, StrategyResult, label, rank_rows, request_row, summary_row
from astra.overhead import FRAME_HEADER_BYTES, SEGMENT_BYTES, bytes_on_links
from astra.traffic import PlannedMessage
from astra.transport import framed_size

EAST, NORTH_EAST = np.array([1.0, 0.0], np.float32), np.array([1.0, 1.0], np.float32)


def answer(request: int, latency_s: float, logits: np.ndarray = EAST) -> Answer:
    return Answer(request, latency_s, logits, {"wait": 0.5})


def result(answers: list[Answer], *counts: RankCounts, burst_rps: float | None = None) -> StrategyResult:
    return StrategyResult(AstraConfig(), "replicated", answers, 1000.4, 1500.0, counts, burst_rps)


def test_label_names_strategy_and_settings():
    assert (label(SingleConfig()), label(AstraConfig(num_groups=4))) == ("single", "astra G=4")


def test_summary_has_percentiles_and_speedup():
    reference = [answer(request, 4.0) for request in range(5)]
    row = summary_row(result([answer(request, 1.0 + request) for request in range(5)]), reference)
    assert (row["latency_p50_s"], row["latency_p95_s"]) == (3.0, pytest.approx(4.8))
    assert row["speedup_vs_single"] == pytest.approx(4 / 3)
    assert (row["bytes_per_request_predicted"], row["bytes_per_request_expected"]) == (1000, 1500)


def test_summary_agreement_compares_answers_about_the_same_image():
    reference = [answer(1, 1.0, NORTH_EAST), answer(0, 1.0, EAST)]
    other = [answer(0, 1.0, EAST), answer(1, 1.0, np.array([0.0, 1.0], np.float32))]
    row = summary_row(result(other), reference)
    assert row["agreement_cosine"] == pytest.approx((1 + 0.5**0.5) / 2)
    assert row["agreement_top1_pct"] == 50.0


def test_summary_divides_counted_frames_by_requests():
    row = summary_row(
        result(
            [answer(0, 1.0), answer(1, 1.0)],
            RankCounts(LinkTotals(4000, 5, 3), None),
            RankCounts(LinkTotals(1, 2, 0), None),
        ),
        None,
    )
    assert row["bytes_per_request_counted"] == 2000
    assert row["packets_lost_per_request"] == 1.5


def test_summary_names_the_busiest_rank_and_the_throughput():
    answers = [answer(0, 1.0), answer(1, 3.0)]
    row = summary_row(result(answers, RankCounts(None, 7), RankCounts(None, 9)), None)
    assert (row["flops_per_request_max_rank"], row["throughput_rps"]) == (9, 0.5)
    assert summary_row(result(answers, burst_rps=4.0), None)["throughput_rps"] == 4.0
    assert summary_row(result(answers, RankCounts(None, None)), None)["flops_per_request_max_rank"] is None


def test_rank_rows_have_operations_and_bytes_of_each_rank():
    rows = rank_rows(result([answer(0, 1.0)], RankCounts(None, 7), RankCounts(None, 9)), [100, 200])
    assert [(row["rank"], row["flops_per_request"], row["bytes_sent_per_request_predicted"]) for row in rows] == [
        (0, 7, 100),
        (1, 9, 200),
    ]


def test_rank_counts_survive_the_way_to_rank_0():
    for counts in (RankCounts(LinkTotals(1, 2, 3), 4, "a", 5, 6), RankCounts(None, None)):
        assert RankCounts.from_json(memoryview(counts.to_json())) == counts


def test_request_row_has_every_span_and_only_plain_values():
    row = request_row(AstraConfig(), "terminal", answer(3, 1.0), [answer(3, 2.0, NORTH_EAST)])
    assert (row["request"], row["placement"], row["wait_s"], row["encode_s"]) == (3, "terminal", 0.5, 0.0)
    assert row["agreement_cosine"] == pytest.approx(0.5**0.5)
    assert {type(value) for value in row.values()} <= {str, int, float, bool, type(None)}
    assert row["missing_tokens_pct"] is None, "nothing was sent as datagrams"


def test_rows_say_what_became_of_datagrams():
    counts = DatagramCounts(rows_expected=200, rows_missing=3, sent=20, received=18, late=1)
    lossless = replace(counts, rows_missing=0)
    answers = [replace(answer(0, 1.0), datagrams=counts), replace(answer(1, 1.0), datagrams=lossless)]
    row = request_row(AstraConfig(), "terminal", answers[0], None)
    assert row["missing_tokens_pct"] == 1.5
    assert (row["datagrams_sent"], row["datagrams_received"], row["datagrams_late"]) == (20, 18, 1)
    assert summary_row(result(answers), None)["missing_tokens_pct"] == 0.75
    assert summary_row(result([answer(0, 1.0)]), None)["missing_tokens_pct"] is None


def test_rows_that_lack_the_same_have_equal_digests():
    counts = DatagramCounts(200, 3, 20, 18, 1, sent_sum=5, missing_sum=6)
    row = request_row(AstraConfig(), "terminal", replace(answer(0, 1.0), datagrams=counts), None)
    again = request_row(AstraConfig(), "terminal", replace(answer(0, 2.0), datagrams=replace(counts, late=0)), None)
    assert row["codes_digest"] == again["codes_digest"] == "0000000000000005"
    assert row["missing_digest"] == again["missing_digest"]
    others = [
        request_row(AstraConfig(), "terminal", replace(answer(0, 1.0), datagrams=replace(counts, missing_sum=7)), None),
        request_row(AstraConfig(), "terminal", replace(answer(1, 1.0), datagrams=counts), None),
        request_row(AstraConfig(num_groups=2), "terminal", replace(answer(0, 1.0), datagrams=counts), None),
    ]
    assert len({row["missing_digest"], *(other["missing_digest"] for other in others)}) == 4
    assert request_row(AstraConfig(), "terminal", answer(0, 1.0), None)["missing_digest"] is None


def test_datagram_counts_add_up_and_survive_the_way_to_rank_0():
    some, more = DatagramCounts(10, 2, 3, 4, 5, 2**64 - 1, 7), DatagramCounts(30, 5, 7, 9, 11, 4, 2**63)
    assert more.minus(some) == DatagramCounts(20, 3, 4, 5, 6, 5, 2**63 - 7)
    assert DatagramCounts.sum([some, more]) == DatagramCounts(40, 7, 10, 13, 16, 3, 2**63 + 7)
    assert DatagramCounts.from_bytes(memoryview(some.to_bytes())) == some
    assert len(some.to_bytes()) == DatagramCounts.SIZE
    assert DatagramCounts(0, 0, 0, 0, 0).missing_pct == 0.0


def test_overhead_of_a_datagram_is_its_headers_and_nothing_comes_back():
    ethernet_ip_udp, own = 14 + 20 + 8, 24 + 8
    messages = [PlannedMessage(0, 1, 320, count=2, is_datagram=True)]
    assert bytes_on_links(messages) == 2 * (320 + ethernet_ip_udp + own)


def test_link_totals_are_differences_over_all_sources():
    begin = {"d1": {"bytes": 10, "packets": 1, "lost": 0, "overflowed": 0}}
    end = {
        "d1": {"bytes": 110, "packets": 3, "lost": 1, "overflowed": 2},
        "d2": {"bytes": 50, "packets": 1, "lost": 0, "overflowed": 0},
    }
    assert LinkTotals.between(begin, end) == LinkTotals(bytes=150, packets=3, lost=3)
    assert LinkTotals.sum([LinkTotals(1, 2, 3), LinkTotals(10, 20, 30)]) == LinkTotals(11, 22, 33)


def test_overhead_of_a_small_message_is_one_segment_and_one_acknowledgement():
    assert bytes_on_links([PlannedMessage(0, 1, 320)]) == framed_size(320) + 2 * FRAME_HEADER_BYTES


def test_overhead_counts_segments_and_every_second_acknowledgement():
    payload = 100_000
    segments = -(-framed_size(payload) // SEGMENT_BYTES)
    expected = framed_size(payload) + (segments + -(-segments // 2)) * FRAME_HEADER_BYTES
    assert bytes_on_links([PlannedMessage(0, 1, payload, count=3)]) == 3 * expected
