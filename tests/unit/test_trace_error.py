"""What a link could carry against what its recording asked for."""

import pytest

from testbed.event_row import Row, event_row
from testbed.scenario import parse
from testbed.trace_error import trace_rows

TEXT = "0,10\n1,20\n2,0\n3,10"


def rows(*times: tuple[float, float, float]) -> list[Row]:
    """Rows of the recording's changes: intended and applied in seconds, rate in Mbps."""
    return [
        event_row(
            0,
            "d1",
            "link",
            intended_s=at,
            applied_s=done,
            acknowledged_s=done,
            source="d0",
            rate_mbps=rate,
            loss_pct=0.0,
        )
        for at, done, rate in times
    ]


EVENT = {"at_s": 5, "link": {"from": "d0", "to": "d1"}, "trace": {"file": "x", "format": "csv", "text": TEXT}}
TREE = {"name": "x", "devices": {"count": 2}, "workload": {"command": ["run"]}, "events": [EVENT]}
SCENARIO = parse({**TREE, "links": {"default": {"rate_mbps": 5}}}, "x.yaml")


def errors(*times: tuple[float, float, float]) -> list[Row]:
    return trace_rows(SCENARIO, rows(*times))


def test_links_that_change_on_time_offer_what_was_asked() -> None:
    (row,) = errors((5, 5, 10), (6, 6, 20))
    assert (row["asked_bits"], row["offered_bits"], row["error_pct"]) == (10_000_000, 10_000_000, 0.0)


def test_a_late_change_and_an_outage_that_is_only_slow_are_seen() -> None:
    (row,) = errors((5, 5, 10), (6, 6.01, 20), (7, 7, 0.1), (8, 8, 10))
    assert row["asked_bits"] == 30_000_000
    assert row["offered_bits"] == pytest.approx(10.1e6 + 0.99 * 20e6 + 0.1e6)
    assert row["changes"] == 4


def test_what_was_delivered_counts_while_packets_wait() -> None:
    changes = rows((5, 5, 10), (6, 6, 20), (7, 7, 0.1), (8, 8, 10))
    samples = [(5.001, 1000, 5), (6.001, 1000 + 1_251_000, 7), (7.001, 1000 + 3_000_000, 0), (8.001, 9_000_000, 3)]
    for row, (at_s, delivered, waiting) in zip(changes, samples, strict=True):
        row |= {"sampled_s": at_s, "delivered_bytes": delivered, "waiting_bytes": waiting}
    (row,) = trace_rows(SCENARIO, changes)
    assert row["busy_s"] == 1.0  # packets waited at 5 and at 6 s, not at 7
    assert row["busy_asked_bits"] == pytest.approx(0.999 * 10e6 + 0.001 * 20e6)
    assert row["busy_delivered_bits"] == 8 * 1_251_000
    assert row["delivered_error_pct"] == pytest.approx(100 * (10.008 / 10.01 - 1), abs=1e-4)


def test_a_link_that_was_never_busy_has_no_error_of_delivery() -> None:
    (row,) = errors((5, 5, 10), (6, 6, 20))
    assert (row["busy_s"], row["delivered_error_pct"]) == (0, None)


def test_a_recording_of_which_nothing_has_happened_has_no_row() -> None:
    assert errors() == []
    assert errors((5, 5, 10)) == []
