"""The ZeroMQ transport between two network namespaces: a link of its own, a peer killed, a cable cut."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.netns

PATIENCE_S = 20.0

PEER = """
import sys, time
from astra.errors import AstraError
from astra.transport import Tag, zeromq

rank = int(sys.argv[1])
transport = zeromq.connect(rank, 2, "10.77.0.1", 29500, 15)
for layer in range(12):
    transport.send(1 - rank, Tag(0, layer, "rows"), bytes([rank + layer]) * 300_000)
    received = transport.receive(1 - rank, Tag(0, layer, "rows"), 15)
    assert received == bytes([1 - rank + layer]) * 300_000
print("exchanged", flush=True)
try:
    transport.receive(1 - rank, Tag(1, 7, "codes"), float(sys.argv[2]))
except AstraError as error:
    print(error, flush=True)
    transport.close(abort=True)
    sys.exit(error.exit_code)
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two namespaces joined by a veth pair; 10.77.0.1 and 10.77.0.2."""
    names = (f"astra{os.getpid()}a", f"astra{os.getpid()}b")
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "data", "netns", names[0], "type", "veth", "peer", "name", "data", "netns", names[1])
        for number, name in enumerate(names, start=1):
            ip("-netns", name, "address", "add", f"10.77.0.{number}/24", "dev", "data")
            ip("-netns", name, "link", "set", "lo", "up")
            ip("-netns", name, "link", "set", "data", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.fixture
def ranks(namespaces: tuple[str, str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Two ranks that have exchanged twelve layers and now wait for each other, rank 0 for a second only."""
    started = []
    for rank, (name, timeout) in enumerate(zip(namespaces, ("1", "60"), strict=True)):
        command = ["ip", "netns", "exec", name, sys.executable, "-c", PEER, str(rank), timeout]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "exchanged\n", process.communicate(timeout=PATIENCE_S)[1]
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


WAITED = "rank 0 waited 1 s for rank 1: request 1, layer 7, phase 'codes' did not arrive"


def test_transport_names_a_killed_peer(ranks: list[subprocess.Popen[str]]) -> None:
    ranks[1].kill()
    began = time.monotonic()
    output, errors = ranks[0].communicate(timeout=PATIENCE_S)
    assert output.startswith(WAITED), errors
    assert ranks[0].returncode == 1
    assert time.monotonic() - began < 1 + PATIENCE_S / 4


def test_transport_names_a_peer_behind_a_cut_cable(
    ranks: list[subprocess.Popen[str]], namespaces: tuple[str, str]
) -> None:
    ip("-netns", namespaces[1], "link", "set", "data", "down")
    output, errors = ranks[0].communicate(timeout=PATIENCE_S)
    assert output.startswith(WAITED), errors
    assert ranks[0].returncode == 1
