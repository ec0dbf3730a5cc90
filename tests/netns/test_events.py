"""Links that change while they are in use, and whole runs with events, in network namespaces."""

import csv
import itertools
import json
import socket
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from testbed.controller import run
from testbed.display import Display
from testbed.links import DeviceRules, LinkRule
from testbed.loss import NO_LOSS, Bernoulli, Recorded
from testbed.options import Options
from testbed.scenario import parse
from testbed.shaper import LinkCounters, Shaper

pytestmark = pytest.mark.netns

NetworkMaker = Callable[[int], Any]

PORT = 5000
RATE_TOLERANCE = 0.25
"""The two rates differ tenfold; how exact they are is tested elsewhere, and other tests load the machine."""
LATE_LIMIT_MS = 100
"""Ten times what an idle machine needs for a change of the loss: this is a shared one."""
LATE_TYPICAL_MS = 10
DELIVERED_TOLERANCE_PCT = 5
"""A change that is 5 ms late on a busy machine, at every step of 100 ms."""
RATE = LinkRule("d1", "10.77.0.2", rate_bps=10e6, delay_s=0, jitter_s=0, queue_s=0.2, loss=NO_LOSS, seed=7)
OTHER = replace(RATE, source="d2", source_address="10.77.0.3", loss=Bernoulli(0.5))


def test_shaper_change_keeps_counters_queue_and_other_links(network: NetworkMaker) -> None:
    net = network(2)

    def receive() -> list[LinkCounters]:
        shaper = Shaper("eth0")
        shaper.apply(DeviceRules("d0", "10.77.0.1", (RATE, OTHER), None))
        counted = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.bind(("", PORT))
            datagrams.settimeout(20)
            for rule in (RATE, replace(RATE, rate_bps=2e6), replace(RATE, loss=Bernoulli(1.0)), RATE):
                shaper.change(shaper.prepare([rule]))
                shaper.check_rates()
                shaper.check_losses()
                datagrams.sendto(b"go", (net.address("d1"), PORT))
                time.sleep(0.5)
                counted.append(shaper.counters()["d1"])
        tree = net.run("d0", "tc", "class", "show", "dev", "tb-ifb")
        assert "htb 7b0:1 root leaf 1001: prio 0 rate 10Mbit ceil 10Mbit" in tree
        assert "7b0:2 root leaf 1002:" in tree
        return counted

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.bind(("", PORT))
            datagrams.settimeout(30)
            for _ in range(4):
                _, asker = datagrams.recvfrom(10)
                for _ in range(50):
                    datagrams.sendto(bytes(58), asker)

    sending = net.start("d1", send)
    counted = net.call("d0", receive)
    sending.result()
    assert [(each.packets, each.lost, each.overflowed) for each in counted] == [
        (50, 0, 0),
        (100, 0, 0),
        (150, 50, 0),
        (200, 50, 0),
    ]


def test_shaper_change_back_to_a_pattern_goes_on_where_it_was_left(network: NetworkMaker) -> None:
    net = network(2)
    first_half = replace(RATE, loss=Recorded("1" * 50 + "0" * 50))
    sequence = (first_half, RATE, first_half, RATE, first_half)

    def receive() -> list[int]:
        shaper = Shaper("eth0")
        shaper.apply(DeviceRules("d0", "10.77.0.1", (RATE, OTHER), None))
        shaper.load_ahead([first_half, replace(OTHER, loss=Bernoulli(0.2))])
        assert not shaper.has_unread_patterns
        lost = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.bind(("", PORT))
            datagrams.settimeout(20)
            for rule in sequence:
                shaper.change(shaper.prepare([rule]))
                shaper.check_switches()
                assert not shaper.has_unread_patterns
                datagrams.sendto(b"go", (net.address("d1"), PORT))
                time.sleep(0.3)
                lost.append(shaper.counters()["d1"].lost)
        shaper.check_losses()
        return lost

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.bind(("", PORT))
            datagrams.settimeout(30)
            for _ in sequence:
                _, asker = datagrams.recvfrom(10)
                for _ in range(50):
                    datagrams.sendto(bytes(58), asker)

    sending = net.start("d1", send)
    lost = net.call("d0", receive)
    sending.result()
    assert lost == [50, 50, 50, 50, 100]


def test_shaper_change_sets_the_rate_at_once(network: NetworkMaker) -> None:
    net = network(2)
    size, fast, slow = 200, 20e6, 2e6

    def receive() -> tuple[float, float]:
        shaper = Shaper("eth0")
        shaper.apply(DeviceRules("d0", "10.77.0.1", (replace(RATE, rate_bps=fast, queue_s=5.0),), None))
        spans = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.bind(("", PORT))
            datagrams.settimeout(20)
            datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            for rate in (fast, slow):
                shaper.change(shaper.prepare([replace(RATE, rate_bps=rate, queue_s=5.0)]))
                datagrams.sendto(b"go", (net.address("d1"), PORT))
                arrivals = []
                for _ in range(size):
                    datagrams.recv(2000)
                    arrivals.append(time.monotonic())
                spans.append(arrivals[-1] - arrivals[0])
        return spans[0], spans[1]

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            datagrams.bind(("", PORT))
            datagrams.settimeout(30)
            for _ in range(2):
                _, asker = datagrams.recvfrom(10)
                for _ in range(size):
                    datagrams.sendto(bytes(972), asker)  # 1014 bytes as the kernel counts

    sending = net.start("d1", send)
    quick, long = net.call("d0", receive)
    sending.result()
    assert quick == pytest.approx(size * 1014 * 8 / fast, rel=RATE_TOLERANCE)
    assert long == pytest.approx(size * 1014 * 8 / slow, rel=RATE_TOLERANCE)


def run_events(tmp_path: Path, events: list[dict[str, Any]], command: list[str], devices: int = 2) -> Path:
    tree = {
        "name": "events",
        "devices": {"count": devices},
        "links": {"default": {"rate_mbps": 10, "loss_pct": 1}},
        "events": events,
        "workload": {"command": command},
    }
    out = tmp_path / "out"
    run(
        parse(tree, str(tmp_path / "x.yaml")),
        Options(out=out, calibrate=False, uncapped=True),
        Display(Console(quiet=True)),
    )
    return out


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "events.csv").open() as file:
        return list(csv.DictReader(file))


def test_run_reports_when_events_happened(tmp_path: Path) -> None:
    link = {"from": "*", "to": "d0"}
    text = "\n".join(f"{at / 10},{5 + at % 2}" for at in range(10))
    out = run_events(
        tmp_path,
        [
            {"at_s": 0.2, "link": link, "trace": {"file": "x", "format": "csv", "text": text, "loop": True}},
            {"at_s": 0.5, "link": {"from": "d0", "to": "d1"}, "action": "flap", "down_s": 0.2, "up_s": 0.2, "times": 2},
            {"at_s": 1.65, "link": link, "set": {"rate_mbps": 1}},
        ],
        ["sleep", "2.5"],
    )
    found = rows(out)
    late = [float(row["late_ms"]) for row in found]
    assert all(0 <= each < LATE_LIMIT_MS for each in late)
    assert statistics.median(late) < LATE_TYPICAL_MS
    times = [[float(row[name]) for name in ("intended_s", "applied_s", "acknowledged_s")] for row in found]
    assert all(each == sorted(each) for each in times)
    assert [row["loss_pct"] for row in found if row["event"] == "1"] == ["100.0", "1.0", "100.0", "1.0"]
    traced = [row for row in found if row["event"] == "0"]
    assert [row["rate_mbps"] for row in traced[:3]] == ["5.0", "6.0", "5.0"]
    assert len(traced) == 15  # one each 0.1 s from 0.2 s on, and then the link is given a rate
    assert [row["rate_mbps"] for row in found if row["event"] == "2"] == ["1.0"]
    assert json.loads((out / "summary.json").read_text())["status"] == "ok"


def test_run_changes_the_loss_of_every_link_on_time(tmp_path: Path) -> None:
    everywhere = {"from": "*", "to": "*"}
    new_losses = [{"at_s": 0.3 * n, "link": everywhere, "set": {"loss_pct": n + 1.5}} for n in range(8)]
    found = rows(run_events(tmp_path, new_losses, ["sleep", "3"], devices=4))
    late = [float(row["late_ms"]) for row in found]
    assert len(late) == 8 * 12
    assert statistics.median(late) < LATE_TYPICAL_MS
    assert sorted(late)[-4] < LATE_LIMIT_MS  # the three links of one device change together, and it may be unlucky once


FLOOD = """
import os, socket, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
    end = time.monotonic() + 3
    while os.environ["RANK"] == "1" and time.monotonic() < end:
        datagrams.sendto(bytes(1000), (os.environ["MASTER_ADDR"], 5000))
        time.sleep(0.0005)
    time.sleep(max(0, end - time.monotonic()))
"""


def test_run_reports_what_a_busy_link_delivered_of_its_recording(tmp_path: Path) -> None:
    text = "\n".join(f"{at / 10},{2 + at % 3}" for at in range(6))
    trace = {"file": "x", "format": "csv", "text": text, "loop": True}
    link = {"between": ["d0", "d1"]}
    out = run_events(tmp_path, [{"at_s": 0.3, "link": link, "trace": trace}], [sys.executable, "-c", FLOOD])
    with (out / "traces.csv").open() as file:
        found = {(row["source"], row["destination"]): row for row in csv.DictReader(file)}
    busy, idle = found["d1", "d0"], found["d0", "d1"]
    assert float(busy["busy_s"]) > 1
    assert float(busy["delivered_error_pct"]) == pytest.approx(0, abs=DELIVERED_TOLERANCE_PCT)
    assert (float(idle["busy_s"]), idle["delivered_error_pct"]) == (0, "")


def test_run_pauses_resumes_and_kills(tmp_path: Path) -> None:
    out = run_events(
        tmp_path,
        [
            {"at_s": 0.5, "device": "d0", "action": "pause"},
            {"at_s": 1.5, "device": "d0", "action": "resume"},
            {"at_s": 1.0, "device": "d1", "action": "kill"},
        ],
        ["sh", "-c", "while true; do date +%s%N; sleep 0.05; n=$((n+1)); [ $n -lt 40 ] || exit 0; done"],
    )
    ticks = [int(line) / 1e9 for line in (out / "logs" / "d0.log").read_text().split()]
    assert len(ticks) == 40
    assert max(b - a for a, b in itertools.pairwise(ticks)) == pytest.approx(1.0, abs=0.15)
    assert len((out / "logs" / "d1.log").read_text().split()) < 40
    assert [row["action"] for row in rows(out)] == ["pause", "kill", "resume"]
