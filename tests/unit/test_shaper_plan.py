"""Classes, queues and their comparison with the kernel's numbers, without a kernel."""

import dataclasses
from typing import Any

import pytest

from testbed.links import DeviceRules, LinkRule
from testbed.loss import NO_LOSS
from testbed.shaper.netlink import ClassState, FilterState, QdiscState
from testbed.shaper.plan import FRAME_BYTES, UNSHAPED_RATE, LinkClass, link_classes, tree_commands, uplink_class
from testbed.shaper.readback import class_differences, filter_differences, queue_differences, root_differences

TICKS_700_US = 10937
"""What tc and the kernel make of 700 us: ticks of 64 ns, rounded down."""


def classes_for(**changes: Any) -> tuple[LinkClass, ...]:
    plain = LinkRule("d1", "10.77.0.2", rate_bps=10e6, delay_s=0, jitter_s=0, queue_s=0.2, loss=NO_LOSS, seed=7)
    return link_classes(DeviceRules("d0", "10.77.0.1", (dataclasses.replace(plain, **changes),), None))


def test_plan_class_has_rate_burst_and_queue_of_the_link() -> None:
    link, rest = classes_for()
    assert (link.rate, link.burst, link.queue.kind, link.queue.limit) == (1_250_000, 875, "bfifo", 250_000)
    assert (rest.rate, rest.address) == (UNSHAPED_RATE, None)


def test_plan_unshaped_link_still_has_a_class_of_its_own() -> None:
    link, _ = classes_for(rate_bps=None)
    assert (link.rate, link.address) == (UNSHAPED_RATE, "10.77.0.2")


def test_plan_delay_makes_a_netem_that_holds_what_is_under_way() -> None:
    link, _ = classes_for(delay_s=0.05, jitter_s=0.01)
    assert (link.queue.kind, link.queue.delay_us, link.queue.jitter_us) == ("netem", 50_000, 10_000)
    assert link.queue.limit == -(-int(1_250_000 * 0.26) // FRAME_BYTES)
    commands = list(tree_commands("tb-ifb", classes_for(delay_s=0.05, jitter_s=0.01)))
    assert commands[2].endswith("netem limit 215 delay 50000us 10000us rate 32000000000bit")


def test_plan_netem_lets_packets_overtake_only_where_asked() -> None:
    commands = list(tree_commands("tb-ifb", classes_for(delay_s=0.05, jitter_s=0.01, reorder=0.02)))
    assert commands[2].endswith("netem limit 215 delay 50000us 10000us reorder 2% rate 32000000000bit")


def test_plan_commands_state_every_unit() -> None:
    commands = list(tree_commands("tb-ifb", classes_for()))
    assert commands[:4] == [
        "qdisc add dev tb-ifb root handle 7b0: htb default fffe",
        "class add dev tb-ifb parent 7b0: classid 7b0:1 htb rate 10000000bit ceil 10000000bit burst 875b cburst 875b "
        "quantum 1514",
        "qdisc add dev tb-ifb parent 7b0:1 handle 1001: bfifo limit 250000",
        "filter add dev tb-ifb parent 7b0: protocol ip prio 1 u32 match ip src 10.77.0.2/32 flowid 7b0:1",
    ]


def test_plan_uplink_is_one_class_for_everything() -> None:
    uplink = uplink_class(20e6)
    assert next(iter(tree_commands("eth0", [uplink]))).endswith("handle 7b1: htb default 1")
    assert (uplink.rate, uplink.queue.limit) == (2_500_000, 500_000)


def kernel_class(link_class: LinkClass, **changes: Any) -> ClassState:
    kept = ClassState(
        link_class.handle, link_class.rate, link_class.rate, TICKS_700_US, TICKS_700_US, FRAME_BYTES, 0, 0, 0, 0
    )
    return dataclasses.replace(kept, **changes)


def test_readback_accepts_the_rounding_of_tc_and_kernel() -> None:
    classes = classes_for()
    assert class_differences(classes, [kernel_class(each) for each in classes]) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rate": 1_249_999}, "rate (bytes/s) of d1"),
        ({"ceil": 1_250_001}, "ceil (bytes/s) of d1"),
        ({"quantum": 1500}, "quantum (bytes) of d1"),
        ({"burst_ticks": TICKS_700_US + 40}, "burst (s) of d1"),
        ({"ceil_burst_ticks": TICKS_700_US - 60}, "cburst (s) of d1"),
    ],
)
def test_readback_names_what_differs(changes: dict[str, int], field: str) -> None:
    link, rest = classes_for()
    found = class_differences((link, rest), [kernel_class(link, **changes), kernel_class(rest)])
    assert [name for name, _, _ in found] == [field]


def test_readback_misses_a_class() -> None:
    link, rest = classes_for()
    assert [name for name, _, _ in class_differences((link, rest), [kernel_class(link)])] == ["class ids"]


def test_readback_compares_queues_root_and_filters() -> None:
    link, _ = classes = classes_for()
    root = QdiscState("htb", 0x7B00000, 0xFFFFFFFF, (0, 0x30011, 10, 0xFFFE))
    queues = [QdiscState("bfifo", each.queue_handle, each.handle, (each.queue.limit,)) for each in classes]
    source = FilterState(((0x0A4D0002, 0xFFFFFFFF, 12),), link.handle, None)
    assert root_differences(classes, [root, *queues]) == []
    assert queue_differences(classes, [root, *queues]) == []
    assert filter_differences(classes, [source]) == []
    assert root_differences(classes, queues) != []
    assert [name for name, _, _ in queue_differences(classes, [root, queues[1]])] == ["queue of d1"]
    smaller = dataclasses.replace(queues[0], options=(link.queue.limit - 1,))
    assert queue_differences(classes, [smaller, queues[1]]) != []
    assert filter_differences(classes, [dataclasses.replace(source, target=link.handle + 1)]) != []


def test_readback_compares_netem_in_ticks() -> None:
    link, rest = classes = classes_for(delay_s=0.05)
    other = QdiscState("bfifo", rest.queue_handle, rest.handle, (rest.queue.limit,))
    words = (781_250, link.queue.limit, 0, 0, 0, 0)
    others, rate = (1 << 16 | 16, 0, 0, 0), (6 << 16 | 20, UNSHAPED_RATE, 0, 0, 0)
    kept = QdiscState("netem", link.queue_handle, link.handle, (*words, *others, *rate))
    assert queue_differences(classes, [kept, other]) == []
    overtaking, _ = asked = classes_for(delay_s=0.05, reorder=0.25)
    assert queue_differences(asked, [kept, other]) != []
    quarter = (12 | 3 << 16, 1 << 30, 0)
    options = (*words[:3], 1, *words[4:], *quarter, *rate)
    assert overtaking.queue.reorder_pct == 25
    assert queue_differences(asked, [dataclasses.replace(kept, options=options), other]) == []
    for wrong in ((781, *words[1:], *others, *rate), words, (*words[:3], 5, *words[4:], *others, *rate)):
        assert queue_differences(classes, [dataclasses.replace(kept, options=wrong), other]) != []
