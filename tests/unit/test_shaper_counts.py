"""What a link has carried and lost, out of the kernel's counters, without a kernel."""

from testbed.links import DeviceRules, LinkRule
from testbed.loss import NO_LOSS
from testbed.shaper.counts import LinkCounters, LinkProgress, link_counters, link_progress
from testbed.shaper.netlink import ClassState
from testbed.shaper.plan import link_classes


def rule(source: str, delay_s: float = 0.0) -> LinkRule:
    address = f"10.77.0.{int(source[1:]) + 1}"
    return LinkRule(source, address, 10e6, delay_s=delay_s, jitter_s=0, queue_s=0.2, loss=NO_LOSS, seed=7)


CLASSES = link_classes(DeviceRules("d0", "10.77.0.1", (rule("d1"), rule("d2", delay_s=0.05)), None))


def states(*counted: tuple[int, int, int, int]) -> dict[int, ClassState]:
    """Bytes, packets, drops and backlog of the first classes; zero for the rest."""
    counted += ((0, 0, 0, 0),) * (len(CLASSES) - len(counted))
    return {
        each.handle: ClassState(each.handle, 1, 1, 1, 1, 1, *numbers)
        for each, numbers in zip(CLASSES, counted, strict=True)
    }


def test_counters_are_since_the_reset_and_count_drops_wherever_they_happened() -> None:
    before, now = states((100, 2, 1, 0)), states((1100, 12, 4, 0), (50, 1, 0, 0))
    found = link_counters(CLASSES, now, before, lost=[3, 0], dropped={"d2": 7})
    assert found == {
        "d1": LinkCounters(bytes=1000, packets=10, lost=3, overflowed=3),
        "d2": LinkCounters(bytes=50, packets=1, lost=0, overflowed=7),
    }


def test_counters_without_a_reset_are_those_of_the_kernel() -> None:
    found = link_counters(CLASSES, states((100, 2, 1, 0)), {}, lost=[0, 0], dropped={})
    assert found["d1"] == LinkCounters(bytes=100, packets=2, lost=0, overflowed=1)


def test_what_waits_is_unknown_where_the_queue_also_delays() -> None:
    found = link_progress(CLASSES, states((100, 2, 0, 60), (50, 1, 0, 60)))
    assert (found["d1"], found["d2"]) == (LinkProgress(100, 60), LinkProgress(50, None))
