"""What the probe plans, expects and judges, without a network."""

import dataclasses
from typing import Any

import pytest

from testbed.calibration import (
    LinkPlan,
    bulk_bytes,
    describe,
    expected_message_s,
    judge_loss,
    judge_message,
    judge_rate,
    judge_round_trip,
    make_plan,
    message_sizes,
    predicted_losses,
    slots,
    window_bytes,
)
from testbed.links import DeviceRules, LinkRule
from testbed.loss import NO_LOSS, Bernoulli, GilbertElliott, Recorded, lost_positions


def device_rules(count: int, rate_bps: float | None = 10e6, **changes: Any) -> list[DeviceRules]:
    names = [f"d{number}" for number in range(count)]
    address = {name: f"10.77.0.{number + 1}" for number, name in enumerate(names)}
    plain = LinkRule("", "", rate_bps, delay_s=0, jitter_s=0, queue_s=0.2, loss=Bernoulli(0.01), seed=7)
    return [
        DeviceRules(
            name,
            address[name],
            tuple(
                dataclasses.replace(plain, source=source, source_address=address[source], **changes)
                for source in names
                if source != name
            ),
            None,
        )
        for name in names
    ]


def link(**changes: Any) -> LinkPlan:
    plain = LinkPlan(
        source="d1",
        destination="d0",
        rate_bps=10e6,
        delay_s=0,
        return_delay_s=0,
        jitter_s=0,
        queue_s=0.2,
        loss=Bernoulli(0.01),
        seed=7,
    )
    return plain.model_copy(update=changes)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_plan_slots_hold_every_link_once_and_no_device_twice(count: int) -> None:
    plan = make_plan(device_rules(count), phase="speed", full=False)
    grouped = slots(plan)
    pairs = [(each.source, each.destination) for links in grouped for each in links]
    assert len(pairs) == len(set(pairs)) == count * (count - 1)
    for links in grouped:
        assert len({each.source for each in links}) == len({each.destination for each in links}) == len(links)
        together = {(each.source, each.destination) for each in links}
        assert not together & {(destination, source) for source, destination in together}


@pytest.mark.parametrize("rate_bps", [100e6, None])
def test_plan_measures_fast_links_one_after_another(rate_bps: float | None) -> None:
    plan = make_plan(device_rules(3, rate_bps), phase="speed", full=True)
    assert [len(links) for links in slots(plan)] == [1] * 6


def test_plan_asks_no_more_than_the_uplink_lets_out() -> None:
    rules = [dataclasses.replace(each, uplink_bps=4e6) for each in device_rules(2)]
    assert {each.rate_bps for each in make_plan(rules, phase="speed", full=False).links} == {4e6}


def test_plan_survives_json() -> None:
    plan = make_plan(device_rules(3, delay_s=0.001), phase="loss", full=True)
    assert type(plan).model_validate_json(plan.model_dump_json()) == plan


def test_plan_leaves_out_messages_that_wait_for_acknowledgements() -> None:
    plan = make_plan(device_rules(2), phase="speed", full=True)
    assert message_sizes(plan, link()) == [2048, 8192, 32768, 131072]
    assert message_sizes(plan, link(delay_s=0.05, return_delay_s=0.05)) == [2048, 8192]


def test_plan_window_never_fills_the_queue() -> None:
    window = window_bytes(link())
    assert window is not None
    assert window < 10e6 / 8 * 0.2
    assert window_bytes(link(rate_bps=None)) is None
    assert bulk_bytes(make_plan(device_rules(2), phase="speed", full=False), link()) == 625_000


def test_expected_message_counts_every_header_byte() -> None:
    assert expected_message_s(link(), 2048) == pytest.approx((2048 + 2 * 66) * 8 / 10e6)
    assert expected_message_s(link(delay_s=0.02), 1448) == pytest.approx(1514 * 8 / 10e6 + 0.02)
    assert expected_message_s(link(rate_bps=None), 2048) is None


@pytest.mark.parametrize(("rate_bps", "ok"), [(10e6, True), (9.91e6, True), (9.89e6, False), (10.11e6, False)])
def test_judge_rate_allows_one_percent(rate_bps: float, ok: bool) -> None:
    row = judge_rate(link(), rate_bps)
    assert (row["metric"], row["asked"], row["ok"]) == ("rate_mbps", 10.0, ok)


def test_judge_message_allows_a_frame_and_a_millisecond_or_five_percent() -> None:
    short, long = 2180 * 8 / 10e6, 137_138 * 8 / 10e6
    assert judge_message(link(), 2048, short + 0.0022)["ok"]
    assert not judge_message(link(), 2048, short + 0.0023)["ok"]
    assert judge_message(link(), 131072, long * 1.049)["ok"]
    assert not judge_message(link(), 131072, long * 1.051)["ok"]
    assert judge_message(link(rate_bps=None), 2048, 1.0)["ok"]


def test_judge_round_trip_is_the_delay_of_both_ways() -> None:
    there_and_back = link(delay_s=0.02, return_delay_s=0.01)
    assert judge_round_trip(there_and_back, 0.0305)["ok"]
    assert not judge_round_trip(there_and_back, 0.02)["ok"]
    assert not judge_round_trip(link(), 0.0011)["ok"]


def test_predicted_losses_start_anywhere_in_the_pattern() -> None:
    positions = lost_positions(Bernoulli(0.01), seed=7, source="d1", destination="d0")
    first = positions[3]
    assert predicted_losses(link(), first, 1) == [0]
    assert predicted_losses(link(), 65_536 + first, 1) == [0]
    assert predicted_losses(link(), 65_530, 20) == [p - 65_530 for p in positions if p >= 65_530] + [
        p + 6 for p in positions if p < 14
    ]


def test_judge_loss_wants_the_very_packets_of_the_pattern() -> None:
    predicted = predicted_losses(link(), 0, 1000)
    share, wrong = judge_loss(link(), first=0, missing=predicted, dropped=len(predicted), seen=1000)
    assert share["ok"]
    assert wrong["ok"]
    shifted = [number + 1 for number in predicted]
    share, wrong = judge_loss(link(), first=0, missing=shifted, dropped=len(predicted), seen=1000)
    assert share["ok"]
    assert (wrong["measured"], wrong["ok"]) == (2 * len(predicted), False)


def test_judge_loss_notices_packets_that_the_kernel_did_not_count() -> None:
    _, wrong = judge_loss(link(loss=NO_LOSS), first=0, missing=[5], dropped=0, seen=1000)
    assert not wrong["ok"]


def test_judge_loss_allows_a_stretch_as_lossy_as_the_pattern_has_one() -> None:
    bursty = link(loss=GilbertElliott(0.001, 0.02, 1.0))
    for first in range(0, 65_536, 4_096):
        predicted = predicted_losses(bursty, first, 400)
        share, wrong = judge_loss(bursty, first=first, missing=predicted, dropped=len(predicted), seen=400)
        assert share["ok"]
        assert wrong["ok"]
    share, _ = judge_loss(link(), first=0, missing=range(40), dropped=40, seen=400)
    assert not share["ok"]


def test_predicted_losses_of_a_recording_begin_again_at_its_end() -> None:
    assert predicted_losses(link(loss=Recorded("00100")), first=4, count=10) == [3, 8]


def test_describe_says_asked_tolerance_and_measured() -> None:
    assert describe(judge_rate(link(), 9e6)) == "link d1 to d0: rate_mbps must be 10 ± 0.1, got 9"
