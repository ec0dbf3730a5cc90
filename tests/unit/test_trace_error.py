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


def errors(*times: tuple[float, float, float]) -> list[Row]:
    event = {"at_s": 5, "link": {"from": "d0", "to": "d1"}, "trace": {"file": "x", "format": "csv", "text": TEXT}}
    tree = {"name": "x", "devices": {"count": 2}, "workload": {"command": ["run"]}, "events": [event]}
    return trace_rows(parse({**tree, "links": {"default": {"rate_mbps": 5}}}, "x.yaml"), rows(*times))


def test_links_that_change_on_time_offer_what_was_asked() -> None:
    (row,) = errors((5, 5, 10), (6, 6, 20))
    assert (row["asked_bits"], row["offered_bits"], row["error_pct"]) == (10_000_000, 10_000_000, 0.0)


def test_a_late_change_and_an_outage_that_is_only_slow_are_seen() -> None:
    (row,) = errors((5, 5, 10), (6, 6.01, 20), (7, 7, 0.1), (8, 8, 10))
    assert row["asked_bits"] == 30_000_000
    assert row["offered_bits"] == pytest.approx(10.1e6 + 0.99 * 20e6 + 0.1e6)
    assert row["changes"] == 4


def test_a_recording_of_which_nothing_has_happened_has_no_row() -> None:
    assert errors() == []
    assert errors((5, 5, 10)) == []
