"""Delay and jitter by the process that holds packets, on any kernel: one that has netem is told that it has not."""

import contextlib
import os
import shutil
import signal
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from delayed_packets import (
    PORT,
    ROUND_TRIP_TOLERANCE_S,
    fastest,
    rules_of,
    run_delayed_scenario,
    times_under_way,
)

from testbed.errors import ShaperError
from testbed.links import DeviceRules, LinkRule
from testbed.loss import NO_LOSS, Bernoulli, drop_pattern
from testbed.shaper import Shaper, has_netem
from testbed.shaper.features import has_packet_queues

pytestmark = pytest.mark.netns

NetworkMaker = Callable[[int], Any]

DELAY_TOLERANCE, DELAY_TOLERANCE_S = 0.05, 1e-3
"""Target of the project: within 5 % of what was asked or 1 ms, whichever is more, at up to 50 Mbps."""
SPREAD_TOLERANCE = 0.15
"""Of the standard deviation of 200 packets, whose own error is 3 %; the rest is the busy machine's."""
RATE_TOLERANCE = 0.02
CPU_LIMIT = 0.5
"""Of a core for a device that receives 50 Mbps, TCP's work on received packets included; measured are 0.2 to 0.3."""
ATTEMPTS = 3
FRAME_BYTES, SEGMENT_BYTES = 1514, 1448
QUEUES = "/proc/net/netfilter/nfnetlink_queue"


@pytest.fixture(autouse=True)
def _without_netem(monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_packet_queues():
        program = shutil.which("iptables")
        pytest.skip(f"missing: {'the program iptables' if program is None else 'xt_NFQUEUE in this kernel'}")
    monkeypatch.setattr("testbed.shaper.shaper.has_netem", lambda: False)


class Shaped:
    """A device whose shaper stands while a test goes on; its process ends when `release` is called."""

    def __init__(self, net: Any, device: str, asked: DeviceRules):
        self._waiting, self._release = os.pipe()
        ready, is_ready = os.pipe()

        def hold() -> Any:
            shaper = Shaper("eth0")
            shaper.apply(asked)
            before = _cpu_s(shaper)
            os.write(is_ready, b"1")
            os.read(self._waiting, 1)
            counted, spent_s = shaper.counters(), _cpu_s(shaper) - before
            shaper.clear()
            return counted, spent_s

        self._call = net.start(device, hold)
        os.close(is_ready)
        assert os.read(ready, 1), self._call.result()
        os.close(ready)

    def release(self) -> Any:
        """Return the counters, and the CPU seconds of the process that delays."""
        os.write(self._release, b"1")
        os.close(self._release)
        os.close(self._waiting)
        return self._call.result()


def _cpu_s(shaper: Shaper) -> float:
    stage = shaper._delays
    if stage is None:
        return 0.0
    words = Path(f"/proc/{stage.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def measure(net: Any, asked: DeviceRules, count: int, pause_s: float) -> list[tuple[int, float]]:
    shaped = Shaped(net, "d0", asked)
    try:
        arrived = times_under_way(net, count, pause_s=pause_s)
    finally:
        shaped.release()
    return arrived


def test_delays_kernel_has_what_was_asked(network: NetworkMaker) -> None:
    net = network(1)
    plain = rules_of(delay_s=0.02).rules[0]
    asked = DeviceRules(
        "d0",
        "10.77.0.1",
        (
            plain,
            LinkRule("d2", "10.77.0.3", 10e6, 0, 0, 0.2, NO_LOSS, 7),
            LinkRule("d3", "10.77.0.4", 10e6, 0.1, 0, 0.2, NO_LOSS, 7),
        ),
        None,
    )
    before = net.run("d0", "nft", "list", "ruleset")
    shaped = Shaped(net, "d0", asked)
    listed = net.run("d0", "iptables", "-t", "raw", "-S", "PREROUTING").splitlines()
    assert listed[1:] == [
        "-A PREROUTING -s 10.77.0.2/32 -i eth0 -j NFQUEUE --queue-num 1",
        "-A PREROUTING -s 10.77.0.4/32 -i eth0 -j NFQUEUE --queue-num 3",
    ]
    rows = [line.split() for line in net.run("d0", "cat", QUEUES).splitlines()]
    assert [(number, waiting, mode) for number, _, waiting, mode, *_ in rows] == [("1", "0", "1"), ("3", "0", "1")]
    shaped.release()
    assert net.run("d0", "cat", QUEUES) == ""
    assert net.run("d0", "nft", "list", "ruleset") == before


@pytest.mark.parametrize("rate_mbps", [10, 50])
def test_delays_are_what_was_asked(network: NetworkMaker, rate_mbps: int) -> None:
    net = network(2)
    for delay_s in (0.002, 0.02, 0.1):
        tolerance = max(DELAY_TOLERANCE * delay_s, DELAY_TOLERANCE_S)
        for _ in range(ATTEMPTS):
            arrived = measure(net, rules_of(rate_bps=rate_mbps * 1e6, delay_s=delay_s), 100, 0.004)
            assert [number for number, _ in arrived] == list(range(100))
            times = [taken for _, taken in arrived]
            assert min(times) >= delay_s
            typical = fastest(times)
            if abs(typical - delay_s) <= tolerance:
                break
        assert typical == pytest.approx(delay_s, abs=tolerance)


def test_delays_spread_by_the_jitter_and_keep_the_order(network: NetworkMaker) -> None:
    net = network(2)
    asked = rules_of(delay_s=0.02, jitter_s=0.01)
    sparse = [taken for _, taken in measure(net, asked, 200, 0.025)]
    assert min(sparse) >= 0.01
    assert statistics.mean(sparse) == pytest.approx(0.02, abs=2e-3)
    assert statistics.stdev(sparse) == pytest.approx(0.01 / 3**0.5, rel=SPREAD_TOLERANCE)
    assert [number for number, _ in measure(net, asked, 300, 1e-3)] == list(range(300))


def test_delays_let_packets_overtake_where_asked(network: NetworkMaker) -> None:
    net = network(2)
    arrived = measure(net, rules_of(delay_s=0.02, reorder=0.1), 400, 1e-3)
    order = [number for number, _ in arrived]
    assert sorted(order) == list(range(400))
    early = [number for number, taken in arrived if taken < 0.01]
    assert 15 < len(early) < 75  # forty, give or take four standard deviations and what a busy machine moves
    late = [number for number in order if number not in set(early)]
    assert late == sorted(late)


def test_delays_lose_the_predicted_packets(network: NetworkMaker) -> None:
    net = network(2)
    count, loss = 1000, Bernoulli(0.05)
    arrived = measure(net, rules_of(rate_bps=50e6, delay_s=0.02, jitter_s=0.005, loss=loss), count, 5e-4)
    pattern = drop_pattern(loss, seed=7, source="d1", destination="d0")
    assert [number for number, _ in arrived] == [number for number in range(count) if not pattern[number]]


def test_delays_hold_more_small_packets_than_the_queue_has_room_for(network: NetworkMaker) -> None:
    net = network(2)
    asked = rules_of(rate_bps=100e6, delay_s=0.3, queue_s=0.05)
    assert len(measure(net, asked, 5000, 0.0)) == 5000


def receive_stream(seconds: float) -> float:
    """Return the bits per second on the wire of the later half of a stream."""
    with socket.create_server(("", PORT)) as server:
        stream, _ = server.accept()
        with stream:
            began, received, end = 0.0, 0, time.monotonic() + seconds
            while time.monotonic() < end and (got := len(stream.recv(1 << 16))):
                if not began and time.monotonic() > end - seconds / 2:
                    began, received = time.monotonic(), -got
                received += got
            return received * 8 / (time.monotonic() - began) * FRAME_BYTES / SEGMENT_BYTES


def send_stream(address: str, seconds: float) -> None:
    with socket.create_connection((address, PORT), 10) as stream, contextlib.suppress(ConnectionError):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stream.send(bytes(1 << 16))


def test_delays_let_a_stream_reach_50_mbps(network: NetworkMaker) -> None:
    net = network(2)
    rate, seconds = 50e6, 4.0
    back = DeviceRules("d1", "10.77.0.2", (LinkRule("d0", "10.77.0.1", rate, 0.02, 0, 0.2, NO_LOSS, 7),), None)
    rates = []
    for _ in range(ATTEMPTS):
        there = [Shaped(net, "d0", rules_of(rate_bps=rate, delay_s=0.02)), Shaped(net, "d1", back)]
        receiving = net.start("d0", receive_stream, seconds)
        time.sleep(0.3)
        sending = net.start("d1", send_stream, net.address("d0"), seconds + 0.5)
        rates.append(receiving.result())
        sending.result()
        spent = [shaped.release()[1] for shaped in there]
        assert max(spent) < CPU_LIMIT * seconds
        if abs(rates[-1] - rate) <= RATE_TOLERANCE * rate:
            break
    assert min(rates, key=lambda got: abs(got - rate)) == pytest.approx(rate, rel=RATE_TOLERANCE)


def test_delays_end_with_their_shaper_and_say_so_when_they_end_alone(network: NetworkMaker) -> None:
    net = network(1)

    def kill_and_count() -> tuple[str, bool]:
        shaper = Shaper("eth0")
        shaper.apply(rules_of(delay_s=0.02))
        stage = shaper._delays
        assert stage is not None
        os.kill(stage.pid, signal.SIGKILL)
        time.sleep(0.1)
        with pytest.raises(ShaperError) as caught:
            shaper.counters()
        shaper.clear()
        shaper.apply(rules_of(delay_s=0.02))
        return str(caught.value), shaper._delays is not None and shaper._delays.alive()

    said, alive = net.call("d0", kill_and_count)
    assert "the process that delays packets must run" in said
    assert alive
    for _ in range(50):  # the shaper's process has ended without `clear`, as a killed agent would
        if not net.run("d0", "cat", QUEUES):
            break
        time.sleep(0.1)
    assert net.run("d0", "cat", QUEUES) == ""


@pytest.mark.skipif(has_netem(), reason="missing: a kernel without sch_netem, which a run prefers")
def test_delays_make_a_run_possible_without_netem(short_folder: Path) -> None:
    manifest, round_trip_s, rows = run_delayed_scenario(short_folder, cpus=0.3, memory_mb=300)
    assert manifest["mechanism"]["delay"] == "nfqueue"
    assert round_trip_s == pytest.approx(0.04, abs=ROUND_TRIP_TOLERANCE_S)
    assert all(row["ok"] == "True" for row in rows if row["metric"] == "round_trip_ms")
