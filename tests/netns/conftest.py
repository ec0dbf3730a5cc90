"""Devices for netns tests: namespaces joined by a bridge in a namespace of its own, removed whatever happens."""

import ctypes
import itertools
import multiprocessing
import os
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

CLONE_NEWNET = 0x40000000
RESULT_TIMEOUT_S = 300.0
"""Much, since the clock of an emulated machine (tests/netem) leaps while that waits for its disk."""
_context = multiprocessing.get_context("fork")
_numbers = itertools.count()


class Call:
    """A function that runs in a process of its own inside a device."""

    def __init__(self, namespace: str, function: Callable[..., Any], arguments: Sequence[Any]):
        self._results, sender = _context.Pipe(duplex=False)
        self._process = _context.Process(target=_run_inside, args=(namespace, function, arguments, sender))
        self._process.start()
        sender.close()

    def result(self) -> Any:
        """Wait for the function's result; fail with its traceback if it raised."""
        try:
            if not self._results.poll(RESULT_TIMEOUT_S):
                raise TimeoutError(f"no result within {RESULT_TIMEOUT_S} s")
            value, error = self._results.recv()
        finally:
            self.stop()
        assert error is None, error
        return value

    def stop(self) -> None:
        if self._process.is_alive():
            self._process.join(1.0)
            self._process.kill()
        self._process.join()
        self._results.close()


class Network:
    """`count` devices d0, d1, ... with addresses 10.77.0.1, 10.77.0.2, ... on their eth0."""

    def __init__(self, count: int):
        self.prefix = f"tbt-{os.getpid()}-{next(_numbers)}"
        self.devices = [f"d{number}" for number in range(count)]
        self._calls: list[Call] = []

    def address(self, device: str) -> str:
        return f"10.77.0.{self.devices.index(device) + 1}"

    def namespace(self, device: str) -> str:
        return f"{self.prefix}-{device}"

    def start(self, device: str, function: Callable[..., Any], *arguments: Any) -> Call:
        """Run a function inside a device, in a forked process."""
        call = Call(self.namespace(device), function, arguments)
        self._calls.append(call)
        return call

    def call(self, device: str, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.start(device, function, *arguments).result()

    def run(self, device: str, *command: str) -> str:
        """Run a program inside a device and return what it printed."""
        return _run("ip", "netns", "exec", self.namespace(device), *command)

    def build(self) -> None:
        switch = self.namespace("sw")
        _run("ip", "netns", "add", switch)
        _run("ip", "-n", switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        _run("ip", "-n", switch, "link", "set", "br0", "up")
        for device in self.devices:
            namespace = self.namespace(device)
            _run("ip", "netns", "add", namespace)
            quiet = "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do [ ! -e $f ] || echo 1 > $f; done"
            _run("ip", "netns", "exec", namespace, "sh", "-c", quiet)
            link = ["link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", namespace]
            _run("ip", "-n", switch, *link)
            _run("ip", "-n", switch, "link", "set", device, "master", "br0", "up")
            _run("ip", "-n", namespace, "link", "set", "lo", "up")
            _run("ip", "-n", namespace, "address", "add", f"{self.address(device)}/24", "dev", "eth0")
            _run("ip", "-n", namespace, "link", "set", "eth0", "up")

    def remove(self) -> None:
        for call in self._calls:
            call.stop()
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
        for name in (line.split()[0] for line in listed.splitlines() if line):
            if name.startswith(f"{self.prefix}-"):
                subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def enter(namespace: str) -> None:
    """Move the calling thread into a network namespace (os.setns is newer than Python 3.11)."""
    handle = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(handle, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"setns {namespace}")
    finally:
        os.close(handle)


@pytest.fixture
def network() -> Iterator[Callable[[int], Network]]:
    """A function that makes a Network of so many devices."""
    made: list[Network] = []

    def make(count: int) -> Network:
        network = Network(count)
        made.append(network)
        network.build()
        return network

    try:
        yield make
    finally:
        for one in made:
            one.remove()


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose name leaves room for Unix sockets, whose paths may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="tb-") as folder:
        yield Path(folder)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def _run_inside(namespace: str, function: Callable[..., Any], arguments: Sequence[Any], results: Connection) -> None:
    try:
        enter(namespace)
        answer = (function(*arguments), None)
    except BaseException:  # noqa: BLE001 - pytest's own failures derive from it; the parent raises it again
        answer = (None, traceback.format_exc())
    results.send(answer)
