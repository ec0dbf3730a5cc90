"""Numbered datagrams over a link, each stamped when it leaves and when it arrives; and a whole run with delays."""

import csv
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from testbed.links import DeviceRules, LinkRule
from testbed.loss import NO_LOSS
from testbed.urgency import go_first

PORT = 5000
STAMP = struct.Struct("!Iq")
QUEUE_S = 0.2
SETTLE_S = 1.0
"""Nothing that is under way takes longer."""


def rules_of(**changes: Any) -> DeviceRules:
    """Return d0's rules for packets from d1."""
    plain = {"rate_bps": 10e6, "delay_s": 0.0, "jitter_s": 0.0, "queue_s": QUEUE_S, "loss": NO_LOSS, "seed": 7}
    return DeviceRules("d0", "10.77.0.1", (LinkRule("d1", "10.77.0.2", **{**plain, **changes}),), None)


def send_datagrams(address: str, count: int, pause_s: float, num_bytes: int) -> None:
    go_first()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        for number in range(count):
            datagrams.sendto(STAMP.pack(number, time.monotonic_ns()).ljust(num_bytes, b"\0"), (address, PORT))
            if pause_s:
                time.sleep(pause_s)


def receive_datagrams(count: int) -> list[tuple[int, float]]:
    """Return number and time under way, in seconds, of each datagram, in order of arrival, until all are there."""
    arrived = []
    go_first()  # here and there: the link is measured, not how soon a busy machine lets programs run
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        datagrams.bind(("", PORT))
        datagrams.settimeout(30)
        while len(arrived) < count:
            try:
                number, sent_ns = STAMP.unpack_from(datagrams.recv(2000))
            except TimeoutError:
                break
            arrived.append((number, (time.monotonic_ns() - sent_ns) / 1e9))
            datagrams.settimeout(SETTLE_S)
    return arrived


def times_under_way(net: Any, count: int, *, pause_s: float, num_bytes: int = STAMP.size) -> list[tuple[int, float]]:
    """Send from d1 to d0; return what `receive_datagrams` does."""
    receiving = net.start("d0", receive_datagrams, count)
    time.sleep(0.2)
    sending = net.start("d1", send_datagrams, net.address("d0"), count, pause_s, num_bytes)
    arrived: list[tuple[int, float]] = receiving.result()
    sending.result()
    return arrived


def fastest(times: Sequence[float]) -> float:
    """Return the middle of the fastest tenth: other work on the machine only ever makes packets late."""
    return statistics.median(sorted(times)[: max(1, len(times) // 10)])


ROUND_TRIPS = 40
ROUND_TRIP_TOLERANCE_S = 4e-3
"""Of the median of as many round trips, each with the jitter of two links of 4 ms: 3.3 ms, over the root of 40."""
PING_PONG = f"""
import os, socket, statistics, time
rank = int(os.environ["RANK"])
with socket.create_server(("", 6000)) if rank == 1 else socket.socket() as pings:
    if rank == 1:
        connection, _ = pings.accept()
        while data := connection.recv(1):
            connection.send(data)
    else:
        while pings.connect_ex(("10.77.0.2", 6000)):
            pings.close()
            time.sleep(0.1)
            pings = socket.socket()
        pings.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        times = []
        for _ in range({ROUND_TRIPS}):
            began = time.monotonic()
            pings.send(b"!")
            pings.recv(1)
            times.append(time.monotonic() - began)
        print("round trip", statistics.median(times))
"""


def run_delayed_scenario(folder: Path, **device: Any) -> tuple[dict[str, Any], float, list[dict[str, str]]]:
    """Run two devices with a delay of 20 ± 4 ms and loss; return manifest, round trip in seconds and calibration."""
    scenario = {
        "name": "delayed",
        "seed": 1,
        "devices": {"count": 2, **device},
        "links": {"default": {"rate_mbps": 5, "delay_ms": 20, "jitter_ms": 4, "loss_pct": 1}},
        "workload": {"command": ["python3", "-c", PING_PONG]},
    }
    with (folder / "scenario.yaml").open("w") as file:
        YAML(typ="safe").dump(scenario, file)
    line = [sys.executable, "-m", "testbed", "run", str(folder / "scenario.yaml"), "--out", str(folder / "out")]
    environment = {**os.environ, "TESTBED_STATE_DIR": str(folder / "state")}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=380)
    assert done.returncode == 0, done.stdout + done.stderr
    run = folder / "out"
    said = "".join(path.read_text() for path in (run / "logs").iterdir())
    with (run / "calibration.csv").open() as file:
        rows = list(csv.DictReader(file))
    manifest: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return manifest, float(said.split("round trip ")[1].split()[0]), rows
