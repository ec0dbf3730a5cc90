"""Rows as datagrams over links that lose packets: what is missing is what the pattern says, and nobody waits long."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from astra.collectives import Collectives
from astra.exchange import open_exchange
from astra.rows import CodeRows
from astra.transport import Tag
from astra.transport.datagram import open_port
from astra.transport.zeromq import connect
from astra.transport_config import DatagramConfig, ReliableConfig
from testbed.links import DeviceRules, LinkRule
from testbed.loss import NO_LOSS, Bernoulli, lost_positions
from testbed.shaper import Shaper

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

NetworkMaker = Callable[[int], Any]

PORT = 29500
PATIENCE_S = 60.0
SETTLE_S = 0.5
"""Longer than anything of TCP's is under way."""
REQUESTS, LAYERS, TOKENS, BITS = 40, 4, 256, 10
LOSS = Bernoulli(0.1)
SLACK_MS = 50.0
"""Some of it for other work on the machine."""
TCP_RTO_S = 0.2
"""Linux's shortest, which the sender has here: only the receiving device is shaped, and told a shorter one."""
FRAMING = 0.10
"""Of the bytes that payload, framing and headers should take; acknowledgements may ride on data or not."""

LINK = LinkRule("d1", "10.77.0.2", rate_bps=10e6, delay_s=0, jitter_s=0, queue_s=0.2, loss=NO_LOSS, seed=7)


def exchange_rows(rank: int, address: str, transport: Any, lossy: bool) -> dict[str, Any]:
    """Be one of two ranks that exchange codes, layer by layer; rank 0 loses what comes. Return what rank 0 met."""
    shaper = Shaper("eth0")
    if lossy:
        shaper.apply(DeviceRules("d0", address, (LINK,), None))
    reliable = connect(rank, 2, address if rank == 0 else "10.77.0.1", PORT, PATIENCE_S)
    port = open_port(reliable, address, PATIENCE_S)
    collectives = Collectives(reliable, PATIENCE_S, port)
    exchange = open_exchange(
        transport, collectives, CodeRows(BITS), [TOKENS] * 2, causal=False, carry_over=lambda _, rows: rows
    )
    collectives.all_gather(Tag(0, 0, "ready"), b"")
    time.sleep(SETTLE_S)
    if lossy:
        shaper.change(shaper.prepare([replace(LINK, loss=LOSS)]))
    time.sleep(SETTLE_S)
    own_rows = torch.arange(TOKENS)[:, None]
    missing, waits_s = [], []
    for position in range(REQUESTS * LAYERS):
        pending = exchange.start(Tag(*divmod(position, LAYERS), "codes"), own_rows)
        began_s = time.monotonic()
        rows = pending.wait()
        waits_s.append(time.monotonic() - began_s)
        if rows.absent_R is not None:
            missing.append(position)
        else:
            assert torch.equal(rows.rows_RV, own_rows)
    traffic = port.traffic
    collectives.all_gather(Tag(REQUESTS, 0, "done"), b"")
    port.close()
    reliable.close()
    return {"missing": missing, "waits_s": waits_s, "received": traffic.received, "late": traffic.late}


def between_two_devices(network: NetworkMaker, transport: Any) -> dict[str, Any]:
    net = network(2)
    other = net.start("d1", exchange_rows, 1, net.address("d1"), transport, False)
    met: dict[str, Any] = net.call("d0", exchange_rows, 0, net.address("d0"), transport, True)
    other.result()
    return met


def test_datagrams_lost_are_those_of_the_pattern(network: NetworkMaker) -> None:
    met = between_two_devices(network, DatagramConfig(slack_ms=SLACK_MS))
    sent = REQUESTS * LAYERS
    pattern = lost_positions(LOSS, seed=LINK.seed, source="d1", destination="d0")
    lost = [position for position in pattern if position < sent]
    assert len(lost) > LOSS.probability * sent / 2, "the pattern has something to lose"
    assert set(lost) <= set(met["missing"])
    only_late = set(met["missing"]) - set(lost)
    assert len(only_late) <= met["late"]
    assert met["received"] + len(lost) == sent


def test_datagrams_lost_delay_no_longer_than_the_deadline(network: NetworkMaker) -> None:
    met = between_two_devices(network, DatagramConfig(slack_ms=SLACK_MS))
    waits_for_lost = [met["waits_s"][position] for position in met["missing"]]
    assert statistics.median(waits_for_lost) < TCP_RTO_S / 2
    reliable = between_two_devices(network, ReliableConfig())
    assert reliable["missing"] == []
    assert max(reliable["waits_s"]) > TCP_RTO_S, "the same packets lost, sent again by TCP"


@pytest.fixture
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tb-"))
    yield folder
    shutil.rmtree(folder)


def bench(place: Path, loss_pct: float, copies: int) -> dict[str, Any]:
    """Run ASTRA and PRISM with datagrams on two devices; return the summary rows by strategy."""
    datagram = {"name": "datagram", "slack_ms": SLACK_MS, "copies": copies}
    scenario = {
        "name": "datagram",
        "seed": 3,
        "devices": {"count": 2, "cpus": 1.0, "memory_mb": 2000},
        "links": {"default": {"rate_mbps": 100, "loss_pct": loss_pct}},
        "workload": {
            "command": ["astra", "bench"],
            "prepare": ["astra", "fit"],
            "config": {
                "model": {"family": "vit", "size": "tiny", "image_size": 128, "num_labels": 10},
                "strategies": [
                    {"name": "astra", "num_codewords": 64, "transport": datagram},
                    {"name": "prism", "num_segments": 4, "transport": datagram},
                ],
                "requests": 10,
                "warmup": 1,
            },
        },
    }
    with (place / "scenario.yaml").open("w") as file:
        YAML(typ="safe").dump(scenario, file)
    environment = {
        **os.environ,
        "TESTBED_STATE_DIR": str(place / "state"),
        "ASTRA_CACHE": str(place / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    line = [sys.executable, "-m", "testbed", "run", "scenario.yaml", "--out", "out", "--no-calibrate", "--go-on"]
    done = subprocess.run(line, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {row["strategy"]: row for row in json.loads((place / "out" / "summary.json").read_text())["rows"]}


def test_bench_with_datagrams_sends_what_is_expected(place: Path) -> None:
    for row in bench(place, 0.0, copies=2).values():
        assert row["bytes_per_request_counted"] == pytest.approx(row["bytes_per_request_expected"], rel=FRAMING)
        assert row["packets_lost_per_request"] == 0


def test_bench_with_datagrams_loses_tokens_and_goes_on(place: Path) -> None:
    rows = bench(place, 8.0, copies=1)
    assert set(rows) == {"astra", "prism"}
    for row in rows.values():
        assert row["requests"] == 10
        assert 0 < row["missing_tokens_pct"] < 50, "8 % are lost; others may be late"
        assert row["packets_lost_per_request"] > 0
