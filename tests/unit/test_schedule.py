"""What happens to which device when, without a kernel."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import InputError
from testbed.links import DeviceRules, rules_for
from testbed.loss import Bernoulli, GilbertElliott
from testbed.scenario import Scenario, load, parse
from testbed.schedule import DeviceEvent, Moment, Schedule, losses_to_come, schedule_for, timeline
from testbed.traces import LEAST_RATE_BPS

ADDRESSES = {f"d{rank}": f"10.0.0.{rank + 1}" for rank in range(3)}
D0_TO_D1 = {"from": "d0", "to": "d1"}


def scenario(*events: dict[str, Any]) -> Scenario:
    links = {"default": {"rate_mbps": 10, "loss_pct": 1}}
    tree = {"name": "x", "devices": {"count": 3}, "workload": {"command": ["run"]}}
    return parse({**tree, "links": links, "events": list(events)}, "x.yaml")


def moments(*events: dict[str, Any], device: str = "d1", limit: int = 20) -> list[Moment]:
    made = scenario(*events)
    rules: DeviceRules = rules_for(made, device, ADDRESSES)
    return list(itertools.islice(timeline(rules, schedule_for(made, device)), limit))


def rates(found: list[Moment]) -> list[tuple[float, float | None]]:
    return [(round(each.at_s, 6), each.rule.rate_bps) for each in found if each.rule is not None]


def losses(found: list[Moment]) -> list[tuple[float, float]]:
    return [(round(each.at_s, 6), each.rule.loss.mean) for each in found if each.rule is not None]


def test_schedule_is_of_the_receiving_device_only() -> None:
    made = scenario(
        {"at_s": 1, "link": {"from": "*", "to": "d1"}, "set": {"rate_mbps": 2}},
        {"at_s": 2, "device": "d2", "action": "kill"},
    )
    assert schedule_for(made, "d0") == Schedule()
    assert schedule_for(made, "d1").links[0].sources == ("d0", "d2")
    assert schedule_for(made, "d2") == Schedule(device=(DeviceEvent(1, 2.0, "kill"),))


def test_set_changes_what_it_states_and_keeps_the_rest() -> None:
    bursts = {"model": "gilbert_elliott", "enter_pct": 1, "leave_pct": 30, "bad_loss_pct": 80}
    first, second, third = moments(
        {"at_s": 1, "link": D0_TO_D1, "set": {"rate_mbps": 2}},
        {"at_s": 2, "link": D0_TO_D1, "set": {"queue_ms": 50, "loss_pct": 3}},
        {"at_s": 3, "link": D0_TO_D1, "set": {"loss": bursts}},
    )
    assert first.rule is not None
    assert second.rule is not None
    assert third.rule is not None
    assert (first.at_s, first.number, first.rule.source) == (1.0, 0, "d0")
    assert (first.rule.rate_bps, first.rule.queue_s, first.rule.loss) == (2e6, 0.2, Bernoulli(0.01))
    assert (second.rule.rate_bps, second.rule.queue_s, second.rule.loss) == (2e6, 0.05, Bernoulli(0.03))
    assert third.rule.loss == GilbertElliott(0.01, 0.3, 0.8)


def test_events_come_in_order_of_time_and_then_of_the_scenario() -> None:
    found = moments(
        {"at_s": 2, "link": D0_TO_D1, "set": {"rate_mbps": 1}},
        {"at_s": 1, "link": D0_TO_D1, "set": {"rate_mbps": 2}},
        {"at_s": 2, "link": D0_TO_D1, "set": {"rate_mbps": 3}},
        {"at_s": 1.5, "device": "d1", "action": "pause"},
        {"at_s": 1.7, "device": "d1", "action": "resume"},
    )
    assert [(each.at_s, each.number, each.action) for each in found] == [
        (1.0, 1, None),
        (1.5, 3, "pause"),
        (1.7, 4, "resume"),
        (2.0, 0, None),
        (2.0, 2, None),
    ]


def test_partition_hides_other_changes_until_healed() -> None:
    found = moments(
        {"at_s": 1, "link": D0_TO_D1, "action": "partition"},
        {"at_s": 2, "link": D0_TO_D1, "set": {"loss_pct": 5}},
        {"at_s": 3, "link": D0_TO_D1, "action": "heal"},
    )
    assert losses(found) == [(1.0, 1.0), (3.0, 0.05)]


def test_flap_breaks_and_heals_so_many_times() -> None:
    found = moments({"at_s": 1, "link": D0_TO_D1, "action": "flap", "down_s": 0.2, "up_s": 0.3, "times": 2})
    assert losses(found) == [(1.0, 1.0), (1.2, 0.01), (1.5, 1.0), (1.7, 0.01)]


def to_come(*events: dict[str, Any]) -> list[tuple[str, float]]:
    made = scenario(*events)
    rules = rules_for(made, "d1", ADDRESSES)
    return [(rule.source, rule.loss.mean) for rule in losses_to_come(rules, schedule_for(made, "d1"))]


def test_losses_to_come_are_named_once_each_in_order() -> None:
    flap = {"at_s": 2, "link": D0_TO_D1, "action": "flap", "down_s": 0.1, "up_s": 0.4, "times": 3}
    later = {"at_s": 9, "link": {"from": "*", "to": "d1"}, "set": {"loss_pct": 5}}
    assert to_come(later, flap) == [("d0", 1.0), ("d0", 0.05), ("d2", 0.05)]
    assert to_come({"at_s": 1, "link": D0_TO_D1, "set": {"loss_pct": 1, "rate_mbps": 3}}) == []


def test_losses_to_come_of_a_recording_that_loops_are_those_of_one_round() -> None:
    text = "seconds,rate_mbps,loss_pct\n0,5,2\n1,5,1\n2,5,3"
    assert to_come(trace(text)) == [("d0", 0.02), ("d0", 0.03)]


def trace(text: str, loop: bool = True, at_s: float = 1) -> dict[str, Any]:
    return {"at_s": at_s, "link": D0_TO_D1, "trace": {"file": "x", "format": "csv", "loop": loop, "text": text}}


def test_trace_drives_rate_and_loss_and_loops() -> None:
    found = moments(trace("seconds,rate_mbps,loss_pct\n0,5,2\n1,0,0\n"), limit=4)
    assert rates(found) == [(1.0, 5e6), (2.0, LEAST_RATE_BPS), (3.0, 5e6), (4.0, LEAST_RATE_BPS)]
    assert losses(found)[:2] == [(1.0, 0.02), (2.0, 0.0)]


def test_trace_ends_where_a_later_event_states_the_rate() -> None:
    found = moments(trace("0,5\n1,6\n"), {"at_s": 2.5, "link": D0_TO_D1, "set": {"rate_mbps": 2}}, limit=9)
    assert rates(found) == [(1.0, 5e6), (2.0, 6e6), (2.5, 2e6)]
    found = moments(trace("0,5\n1,6\n"), trace("0,7\n", loop=False, at_s=2.5), limit=9)
    assert rates(found) == [(1.0, 5e6), (2.0, 6e6), (2.5, 7e6)]


def test_trace_that_never_changes_anything_does_not_hang_its_reader() -> None:
    assert [each.rule for each in moments(trace("0,10\n"), limit=3)] == [None, None, None]


def test_trace_file_is_read_into_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "fade.csv").write_text("0,5\n1,6\n")
    path = tmp_path / "s.yaml"
    path.write_text(
        "name: s\ndevices: {count: 2}\nworkload: {command: [run]}\n"
        "events: [{at_s: 0, link: {from: d0, to: d1}, trace: {file: fade.csv, format: csv}}]\n"
    )
    made = load(path)
    again = tmp_path / "elsewhere" / "s.yaml"
    again.parent.mkdir()
    again.write_text(made.dump())
    assert load(again) == made
    (tmp_path / "fade.csv").write_text("0,5\n1,fast\n")
    with pytest.raises(InputError) as caught:
        load(path)
    (fault,) = caught.value.faults
    assert fault.endswith(": events[0].trace.file must be a table of numbers, got 'fade.csv'; correct line 2, '1,fast'")
