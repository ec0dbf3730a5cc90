"""Delay and jitter by a kernel that has sch_netem. Where this one has not, `tests/netem` runs this file in one."""

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from delayed_packets import PORT, QUEUE_S, fastest, rules_of, times_under_way
from ruamel.yaml import YAML

from testbed.links import DeviceRules
from testbed.loss import Bernoulli, drop_pattern
from testbed.shaper import LinkCounters, Shaper, has_netem

pytestmark = [pytest.mark.netns, pytest.mark.timeout(400)]

NetworkMaker = Callable[[int], Any]

FRAME_BYTES = 1514
DELAY_TOLERANCE, DELAY_TOLERANCE_S = 0.01, 0.2e-3
"""Target of the project: within 1 % of what was asked or 0.2 ms, whichever is more."""
SPREAD_TOLERANCE = 0.15
"""Of the standard deviation of 200 packets, whose own error is 3 %; the rest is the busy machine's."""
RATE_TOLERANCE = 0.05
"""Of one stream in an emulated machine; what is checked is that the delay's queue holds all that is under way."""


@pytest.fixture(autouse=True)
def _netem() -> None:
    if not has_netem():
        pytest.skip("needs a kernel with sch_netem (tests/netem brings one)")


def apply(asked: DeviceRules) -> dict[str, LinkCounters]:
    shaper = Shaper("eth0")
    shaper.apply(asked)
    return shaper.counters()


def test_netem_kernel_has_what_was_asked(network: NetworkMaker) -> None:
    net = network(1)
    for reorder in (False, True):
        net.call("d0", apply, rules_of(delay_s=0.02, jitter_s=0.002, reorder=reorder))
        qdiscs = json.loads(net.run("d0", "tc", "-json", "qdisc", "show", "dev", "tb-ifb"))
        (netem,) = [qdisc["options"] for qdisc in qdiscs if qdisc["kind"] == "netem"]
        assert netem["delay"]["delay"] == pytest.approx(0.02, abs=1e-6)
        assert netem["delay"]["jitter"] == pytest.approx(0.002, abs=1e-6)
        assert netem["limit"] == -(-int(10e6 / 8 * (0.02 + 0.002 + QUEUE_S)) // FRAME_BYTES)
        assert ("rate" in netem) is not reorder
        assert netem["gap"] == 0


def test_netem_delays_by_what_was_asked(network: NetworkMaker) -> None:
    net = network(2)
    typical = {}
    for delay_s in (0.0, 0.005, 0.05):
        net.call("d0", apply, rules_of(delay_s=delay_s))
        times = [taken for _, taken in times_under_way(net, 40, pause_s=0.01)]
        assert len(times) == 40
        typical[delay_s] = fastest(times)
    for delay_s in (0.005, 0.05):
        tolerance = max(DELAY_TOLERANCE * delay_s, DELAY_TOLERANCE_S)
        assert typical[delay_s] - typical[0.0] == pytest.approx(delay_s, abs=tolerance), typical


def test_netem_spreads_by_the_jitter_and_keeps_the_order(network: NetworkMaker) -> None:
    net = network(2)
    delay_s, jitter_s = 0.02, 0.01
    net.call("d0", apply, rules_of(delay_s=delay_s, jitter_s=jitter_s))
    sparse = [taken for _, taken in times_under_way(net, 200, pause_s=2.5 * jitter_s)]
    assert min(sparse) >= delay_s - jitter_s
    assert statistics.mean(sparse) == pytest.approx(delay_s, abs=0.1 * delay_s)
    assert statistics.stdev(sparse) == pytest.approx(jitter_s / 3**0.5, rel=SPREAD_TOLERANCE)
    dense = [number for number, _ in times_under_way(net, 100, pause_s=1e-3)]
    assert dense == list(range(100))


def test_netem_reorders_where_asked(network: NetworkMaker) -> None:
    net = network(2)
    net.call("d0", apply, rules_of(delay_s=0.02, jitter_s=0.01, reorder=True))
    dense = [number for number, _ in times_under_way(net, 100, pause_s=1e-3)]
    assert sorted(dense) == list(range(100))
    assert dense != sorted(dense)


def test_netem_loses_the_predicted_packets(network: NetworkMaker) -> None:
    net = network(2)
    count, loss = 300, Bernoulli(0.05)
    asked = rules_of(delay_s=0.02, jitter_s=0.005, loss=loss)
    counted = net.call("d0", apply, asked)
    pattern = drop_pattern(loss, seed=7, source="d1", destination="d0")
    first = counted["d1"].packets
    arrived = [number for number, _ in times_under_way(net, count, pause_s=1e-3)]
    assert arrived == [number for number in range(count) if not pattern[(first + number) % len(pattern)]]


def test_netem_lets_a_stream_reach_its_rate(network: NetworkMaker) -> None:
    net = network(2)
    rate, seconds = 5e6, 3.0
    net.call("d0", apply, rules_of(rate_bps=rate, delay_s=0.03))

    def receive() -> float:
        with socket.create_server(("", PORT)) as server:
            stream, _ = server.accept()
            began, received = None, 0
            with stream:
                end = time.monotonic() + seconds
                while time.monotonic() < end and (chunk := len(stream.recv(1 << 16))):
                    if began is None and time.monotonic() > end - seconds / 2:
                        began, received = time.monotonic(), 0
                    received += chunk
            assert began is not None
            return received * 8 / (time.monotonic() - began) * FRAME_BYTES / 1448

    def send() -> None:
        end = time.monotonic() + seconds + 1
        with socket.create_connection((net.address("d0"), PORT), 10) as stream:
            stream.settimeout(10)
            try:
                while time.monotonic() < end:
                    stream.send(bytes(1 << 15))
            except (ConnectionResetError, BrokenPipeError):
                pass

    receiving = net.start("d0", receive)
    time.sleep(0.5)
    sending = net.start("d1", send)
    assert receiving.result() == pytest.approx(rate, rel=RATE_TOLERANCE)
    sending.result()


PING_PONG = """
import os, socket, statistics, time
rank, peer = int(os.environ["RANK"]), "10.77.0.%d" % (2 - int(os.environ["RANK"]))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as pings:
    pings.bind(("", 6000))
    pings.settimeout(60)
    if rank == 1:
        for _ in range(30):
            data, sender = pings.recvfrom(10)
            pings.sendto(data, sender)
    else:
        time.sleep(1)
        times = []
        for _ in range(30):
            began = time.monotonic()
            pings.sendto(b"ping", (peer, 6000))
            pings.recv(10)
            times.append(time.monotonic() - began)
        print("round trip", statistics.median(times))
"""


def test_netem_runs_a_scenario_with_delay_and_jitter(tmp_path: Path) -> None:
    scenario = {
        "name": "delayed",
        "seed": 1,
        "devices": {"count": 2},
        "links": {"default": {"rate_mbps": 5, "delay_ms": 20, "jitter_ms": 4, "loss_pct": 1}},
        "workload": {"command": ["python3", "-c", PING_PONG]},
    }
    path = tmp_path / "scenario.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(scenario, file)
    line = [sys.executable, "-m", "testbed", "run", str(path), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        line, env={**os.environ, "TESTBED_STATE_DIR": str(tmp_path / "s")}, capture_output=True, text=True, timeout=380
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "out").glob("delayed-*")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "netem" in json.dumps(manifest)
    log = (folder / "logs").glob("d0*")
    said = "".join(each.read_text() for each in log)
    round_trip = float(said.split("round trip ")[1].split()[0])
    assert round_trip == pytest.approx(0.040, abs=0.008)
    assert "round_trip_ms" in (folder / "calibration.csv").read_text()
