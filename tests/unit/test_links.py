"""Which settings a link gets, and their conversion to SI units."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.links import DeviceRules, LinkRule, rules_for
from testbed.loss import NO_LOSS, Bernoulli
from testbed.scenario import LinkSettings, Scenario, device_names, parse

ADDRESSES = {f"d{rank}": f"10.0.0.{rank + 1}" for rank in range(4)}


def scenario(count: int = 3, **links: Any) -> Scenario:
    tree = {"name": "x", "seed": 5, "devices": {"count": count}, "workload": {"command": ["run"]}, "links": links}
    return parse(tree, "x.yaml")


def rates(chosen: Scenario) -> dict[str, float | None]:
    names = device_names(chosen.devices.count)
    return {f"{a}>{b}": chosen.links.settings(a, b).rate_mbps for a in names for b in names if a != b}


def test_settings_are_the_default_where_nothing_overrides() -> None:
    links = scenario(default={"rate_mbps": 10, "loss_pct": 1}).links
    assert links.settings("d0", "d1") == LinkSettings(10.0, 0.0, 0.0, 1.0, 200.0)


def test_settings_follow_the_direction_of_an_override() -> None:
    chosen = scenario(default={"rate_mbps": 10}, overrides=[{"from": "d0", "to": "d1", "rate_mbps": 5}])
    assert [key for key, rate in rates(chosen).items() if rate == 5] == ["d0>d1"]


def test_settings_of_between_hold_in_both_directions() -> None:
    chosen = scenario(default={"rate_mbps": 10}, overrides=[{"between": ["d2", "d0"], "rate_mbps": 5}])
    assert [key for key, rate in rates(chosen).items() if rate == 5] == ["d0>d2", "d2>d0"]


@pytest.mark.parametrize(
    ("ends", "covered"),
    [
        ({"from": "*", "to": "d1"}, ["d0>d1", "d2>d1"]),
        ({"from": "d1", "to": "*"}, ["d1>d0", "d1>d2"]),
        ({"from": "*", "to": "*"}, ["d0>d1", "d0>d2", "d1>d0", "d1>d2", "d2>d0", "d2>d1"]),
    ],
)
def test_settings_know_the_star(ends: dict[str, str], covered: list[str]) -> None:
    chosen = scenario(default={"rate_mbps": 10}, overrides=[{**ends, "rate_mbps": 5}])
    assert [key for key, rate in rates(chosen).items() if rate == 5] == covered


def test_settings_take_the_last_override_setting_by_setting() -> None:
    links = scenario(
        default={"rate_mbps": 10, "delay_ms": 4},
        overrides=[
            {"from": "*", "to": "d1", "rate_mbps": 5, "delay_ms": 3},
            {"from": "d0", "to": "d1", "rate_mbps": None},
            {"from": "d2", "to": "d1", "delay_ms": 1, "loss": {"model": "bernoulli", "loss_pct": 2}},
        ],
    ).links
    assert links.settings("d0", "d1") == LinkSettings(None, 3.0, 0.0, 0.0, 200.0)
    assert links.settings("d2", "d1") == LinkSettings(5.0, 1.0, 0.0, 2.0, 200.0)
    assert links.settings("d1", "d2") == LinkSettings(10.0, 4.0, 0.0, 0.0, 200.0)


def test_general_override_may_stand_before_its_exception_but_not_after() -> None:
    general, exception = {"from": "*", "to": "d1", "rate_mbps": 5}, {"from": "d0", "to": "d1", "rate_mbps": 2}
    assert rates(scenario(overrides=[general, exception]))["d0>d1"] == 2
    with pytest.raises(InputError, match=r"overrides\[0\]\.rate_mbps must be in effect on some link, got 2"):
        scenario(overrides=[exception, general])


def test_override_that_is_said_twice_alike_is_no_contradiction() -> None:
    twice = [{"from": "d0", "to": "d1", "rate_mbps": 5}] * 2
    assert rates(scenario(overrides=twice))["d0>d1"] == 5


def test_star_is_no_fault_where_one_device_has_no_links() -> None:
    assert (
        rates(scenario(count=1, default={"jitter_ms": 1}, overrides=[{"from": "*", "to": "*", "rate_mbps": 5}])) == {}
    )


def test_jitter_is_judged_on_the_resolved_link() -> None:
    both = {"from": "*", "to": "*", "delay_ms": 10}
    assert scenario(default={"jitter_ms": 5}, overrides=[both]).links.settings("d0", "d1").jitter_ms == 5


NAMES = st.sampled_from(["d0", "d1", "d2"])
ENDS = st.tuples(NAMES | st.just("*"), NAMES | st.just("*")).filter(lambda ends: ends[0] != ends[1] or ends[0] == "*")
OVERRIDES = st.lists(st.tuples(ENDS, st.integers(1, 50)), max_size=5)


@settings(deadline=None)  # a busy machine is no fault
@given(OVERRIDES)
def test_settings_equal_painting_overrides_in_order(drawn: list[tuple[tuple[str, str], int]]) -> None:
    painted: dict[str, float | None] = dict.fromkeys(rates(scenario()), None)
    for (source, to), rate in drawn:
        for key in painted:
            a, b = key.split(">")
            if source in (a, "*") and to in (b, "*"):
                painted[key] = rate
    overrides = [{"from": source, "to": to, "rate_mbps": rate} for (source, to), rate in drawn]
    try:
        assert rates(scenario(overrides=overrides)) == painted
    except InputError as error:  # only ever about a value that shows on no link
        for line in error.faults:
            position = int(line.split("[")[1].split("]")[0])
            (source, to), rate = drawn[position]
            covered = [key for key in painted if source in (key[:2], "*") and to in (key[3:], "*")]
            assert all(painted[key] != rate for key in covered)


def test_rules_for_lists_every_other_device_in_si_units() -> None:
    chosen = scenario(
        default={"rate_mbps": 2.5, "delay_ms": 20, "jitter_ms": 5, "loss_pct": 1, "queue_ms": 250},
        overrides=[{"from": "d0", "to": "d1", "rate_mbps": None, "loss_pct": 0}],
        uplink_mbps=0.5,
    )
    assert rules_for(chosen, "d1", ADDRESSES) == DeviceRules(
        device="d1",
        address="10.0.0.2",
        rules=(
            LinkRule("d0", "10.0.0.1", None, delay_s=0.02, jitter_s=0.005, queue_s=0.25, loss=NO_LOSS, seed=5),
            LinkRule("d2", "10.0.0.3", 2.5e6, delay_s=0.02, jitter_s=0.005, queue_s=0.25, loss=Bernoulli(0.01), seed=5),
        ),
        uplink_bps=5e5,
    )


def test_rules_for_a_lone_device_are_empty() -> None:
    assert rules_for(scenario(count=1), "d0", ADDRESSES) == DeviceRules("d0", "10.0.0.1", (), None)


def test_rules_for_refuses_unknown_device_and_missing_address() -> None:
    with pytest.raises(KeyError, match="d3"):
        rules_for(scenario(), "d3", ADDRESSES)
    with pytest.raises(KeyError, match="d2"):
        rules_for(scenario(), "d0", {"d0": "10.0.0.1", "d1": "10.0.0.2"})


def test_rules_without_loss_keep_everything_else() -> None:
    lossy = rules_for(scenario(default={"rate_mbps": 10, "loss_pct": 3}), "d0", ADDRESSES)
    clean = rules_for(scenario(default={"rate_mbps": 10}), "d0", ADDRESSES)
    assert lossy.rules[0].loss == Bernoulli(0.03)
    assert lossy.without_loss() == clean
