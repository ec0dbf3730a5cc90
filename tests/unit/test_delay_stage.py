"""When held packets are let go, and how the kernel's list of queues is read; no kernel needed."""

import struct
from pathlib import Path

import pytest

from testbed.links import LinkRule
from testbed.loss import NO_LOSS
from testbed.shaper import delays
from testbed.shaper.delay_stage import HeldPackets
from testbed.shaper.delays import QueueState, queue_states, rule_commands, stage_links

MS = 1_000_000


def held(**changes: object) -> HeldPackets:
    plain = {"delay_ns": 20 * MS, "jitter_ns": 0, "reorder": 0.0, "seed": "x"}
    return HeldPackets(1, **{**plain, **changes})  # type: ignore[arg-type]


def verdicts(messages: bytes) -> list[tuple[int, int]]:
    """Return (kind of message, packet id) of each."""
    return [
        (struct.unpack_from("=H", messages, at + 4)[0] & 0xFF, struct.unpack_from(">I", messages, at + 28)[0])
        for at in range(0, len(messages), 32)
    ]


def test_delays_let_packets_go_together_once_they_are_due() -> None:
    packets = held()
    for number, now_ms in enumerate((0, 1, 15), start=1):
        packets.hold(number, now_ms * MS)
    assert packets.next_ns() == 20 * MS
    assert packets.verdicts(20 * MS - 1) == b""
    assert verdicts(packets.verdicts(21 * MS)) == [(3, 2)]  # one message for all up to packet 2
    assert packets.next_ns() == 35 * MS
    assert verdicts(packets.verdicts(40 * MS)) == [(3, 3)]
    assert packets.next_ns() is None


def test_delays_with_jitter_stay_in_range_and_order() -> None:
    packets = held(jitter_ns=10 * MS)
    for number in range(1000):
        packets.hold(number, number * MS)
    due = [packets._in_order[number][0] - number * MS for number in range(1000)]
    assert min(due) >= 10 * MS
    assert max(due) <= 30 * MS
    times = [when for when, _ in packets._in_order]
    assert times == sorted(times)


def test_delays_let_some_packets_overtake_at_once() -> None:
    packets = held(jitter_ns=10 * MS, reorder=0.1)
    released: list[tuple[int, int]] = []
    for number in range(1000):
        packets.hold(number, number * MS)
        released += verdicts(packets.verdicts(number * MS))
    overtaking = [number for kind, number in released if kind == 1]
    assert 60 < len(overtaking) < 140  # a hundred, give or take four standard deviations
    waiting = [number for _, number in packets._in_order]
    assert waiting == sorted(waiting)
    assert not set(waiting) & set(overtaking)
    again = held(jitter_ns=10 * MS, reorder=0.1)
    for number in range(1000):
        again.hold(number, 0)
    assert again._overtaking == overtaking


def test_delays_draw_the_same_jitter_from_the_same_seed() -> None:
    first, again, other = held(jitter_ns=5 * MS), held(jitter_ns=5 * MS), held(jitter_ns=5 * MS, seed="y")
    for packets in (first, again, other):
        packets.hold(1, 0)
    assert first.next_ns() == again.next_ns() != other.next_ns()


def test_delays_number_queues_by_the_position_of_their_link() -> None:
    def rule(source: str, address: str, delay_s: float) -> LinkRule:
        return LinkRule(source, address, 1e6, delay_s, 0, 0.2, NO_LOSS, 7)

    links = stage_links([rule("d1", "10.0.0.2", 0), rule("d2", "10.0.0.3", 0.02)], "d0")
    assert [(link.source, link.queue, link.delay_ns) for link in links] == [("d2", 2, 20 * MS)]
    (command,) = rule_commands("eth0", links)
    assert " ".join(command) == ("iptables -w -t raw -A PREROUTING -s 10.0.0.3/32 -i eth0 -j NFQUEUE --queue-num 2")


def test_delays_read_the_kernels_list_of_queues() -> None:
    listing = "    1  31000     5 1     0     2     3      99  1\n    3  31000     0 1     0     0     0       0  1\n"
    assert queue_states(listing) == [QueueState(1, 1, 5), QueueState(3, 1, 0)]


@pytest.mark.parametrize("version", [1, 2])
def test_delays_leave_the_groups_of_a_device(tmp_path: Path, version: int) -> None:
    run = tmp_path / "testbed-ab12"
    (run / "d0").mkdir(parents=True)
    if version == 1:
        mounts, own = [["c", str(tmp_path), "cgroup", "rw,cpu,cpuacct"]], [["2", "cpu,cpuacct", "/testbed-ab12/d0"]]
        wanted = tmp_path / "cgroup.procs"
    else:
        mounts, own = [["c", str(tmp_path), "cgroup2", "rw"]], [["0", "", "/testbed-ab12/d0"]]
        wanted = run / "delays" / "cgroup.procs"
    assert delays._group_files(mounts, own) == [wanted]
    assert delays._group_files(mounts, [[own[0][0], own[0][1], "/docker/abc"]]) == []
