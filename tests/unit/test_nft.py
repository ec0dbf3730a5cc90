"""The nftables text and its comparison with what nft lists, without a kernel."""

from dataclasses import replace
from typing import Any

import pytest

from testbed.loss import PATTERN_LENGTH
from testbed.shaper import nft
from testbed.shaper.nft import LossRule, differences, forget_text, load_text, pattern_text, switch_text

SOME = LossRule(1, "10.77.0.2", (3, 5, 70))
NONE = LossRule(2, "10.77.0.3", ())
ALL = LossRule(3, "10.77.0.4", tuple(range(PATTERN_LENGTH)))
MOST = LossRule(4, "10.77.0.5", tuple(range(2, PATTERN_LENGTH)))


def match(op: str, left: dict[str, Any], right: Any) -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def listing(positions: Any = None, priority: int = -450, drop: bool = True) -> dict[str, Any]:
    hook = [
        match("==", {"meta": {"key": "iifname"}}, "eth0"),
        match("==", {"payload": {"protocol": "ip", "field": "saddr"}}, "10.77.0.2"),
        {"counter": "seen_1"},
        {"jump": {"target": "pattern_1_0"}},
    ]
    pattern = [
        match("==", {"numgen": {"mode": "inc", "mod": 65536, "offset": 0}}, positions or {"set": [3, 5, 70]}),
        {"counter": "lost_1"},
        *([{"drop": None}] if drop else []),
    ]
    chain = {"name": "lose_1", "hook": "prerouting", "prio": priority, "policy": "accept"}
    chains = [{"chain": chain}, {"chain": {"name": "pattern_1_0"}}]
    rules = [{"rule": {"chain": "lose_1", "expr": hook}}, {"rule": {"chain": "pattern_1_0", "expr": pattern}}]
    return {"nftables": [{"metainfo": {}}, *chains, *rules]}


def test_nft_text_looks_the_position_up_in_the_pattern() -> None:
    text = load_text("eth0", [SOME])
    assert 'iifname "eth0" ip saddr 10.77.0.2 counter name seen_1 jump pattern_1_0' in text
    assert "numgen inc mod 65536 { 3, 5, 70 } counter name lost_1 drop" in text


def test_nft_text_replaces_the_table_in_one_transaction() -> None:
    assert load_text("eth0", [SOME]).startswith("table ip testbed\ndelete table ip testbed\n")


@pytest.mark.parametrize(
    ("rule", "condition"), [(SOME, ("==", [3, 5, 70])), (NONE, None), (ALL, None), (MOST, ("!=", [0, 1]))]
)
def test_nft_condition_holds_the_smaller_half(rule: LossRule, condition: tuple[str, list[int]] | None) -> None:
    assert rule.condition() == condition


def test_nft_pattern_without_loss_is_empty_and_with_certain_loss_only_drops() -> None:
    assert pattern_text(NONE) == "add chain ip testbed pattern_2_0\nflush chain ip testbed pattern_2_0\n"
    assert pattern_text(ALL).splitlines()[-1] == "add rule ip testbed pattern_3_0 counter name lost_3 drop"


def test_nft_switch_says_nothing_of_positions() -> None:
    text = switch_text("eth0", [replace(SOME, version=1)])
    assert text.startswith("flush chain ip testbed lose_1\n")
    assert text.endswith("counter name seen_1 jump pattern_1_1\n")
    assert forget_text(SOME) == "delete chain ip testbed pattern_1_0\n"


def test_nft_differences_of_what_was_asked_are_none() -> None:
    assert differences("eth0", [SOME], listing()) == []


def test_nft_differences_look_at_patterns_that_no_packet_meets() -> None:
    spare = LossRule(1, "10.77.0.2", (1,), version=1)
    missing = differences("eth0", [SOME], listing(), [spare])
    assert [field for field, _, _ in missing][:2] == ["nftables chains", "chains of nftables rules"]
    with_spare = listing()
    expr = [match("==", {"numgen": {"mode": "inc", "mod": 65536}}, 1), {"counter": "lost_1"}, {"drop": None}]
    with_spare["nftables"] += [
        {"chain": {"name": "pattern_1_1"}},
        {"rule": {"chain": "pattern_1_1", "expr": expr}},
    ]
    assert differences("eth0", [SOME], with_spare, [spare]) == []


def test_nft_differences_understand_ranges_and_single_positions() -> None:
    neighbours = LossRule(1, "10.77.0.2", (3, 4, 5, 70))
    assert differences("eth0", [neighbours], listing({"set": [{"range": [3, 5]}, 70]})) == []
    assert differences("eth0", [LossRule(1, "10.77.0.2", (9,))], listing(9)) == []


@pytest.mark.parametrize(
    ("got", "field"),
    [
        (listing({"set": [3, 5]}), "nftables rule in pattern_1_0, positions"),
        (listing(drop=False), "nftables rule in pattern_1_0, drop"),
        (listing(priority=0), "nftables chains"),
        ({"nftables": []}, "chains of nftables rules"),
    ],
)
def test_nft_differences_name_the_field(got: dict[str, Any], field: str) -> None:
    assert field in [name for name, _, _ in differences("eth0", [SOME], got)]


def test_nft_differences_see_another_interface() -> None:
    fields = [name for name, _, _ in differences("eth1", [SOME], listing())]
    assert fields == ["nftables rule in lose_1, iifname"]
    assert nft.remove_text() in load_text("eth1", [SOME])
