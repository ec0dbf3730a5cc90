"""What TCP can do about lost packets of codes: request times for each option, over a link that loses packets.

    sudo chrt -r 1 python tests/bench/tcp_options.py [--bytes N] [--requests N] [LOSS_PCT ...]

Two devices exchange 366 bytes (one ASTRA message of 256 codes) in each of twelve layers, with a pause for computing,
over 10 Mbps links that lose packets in both directions. `chrt` keeps other work of the machine out of the times. Not a
test: prints a table, judges nothing.
"""

import argparse
import itertools
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "netns"))

from conftest import Network

from testbed.links import DeviceRules, LinkRule
from testbed.loss import NO_LOSS, Bernoulli
from testbed.shaper import Shaper

MESSAGE_BYTES, REQUESTS = 366, 100
LAYERS, COMPUTE_S = 12, 0.005
PORT = 5000
THIN_LINEAR_TIMEOUTS, RTO_MIN_US = 16, 45
"""Socket options that Python has no names for; the last since Linux 6.15."""
RULE = LinkRule("d0", "10.77.0.1", rate_bps=10e6, delay_s=0, jitter_s=0, queue_s=0.2, loss=NO_LOSS, seed=7)


@dataclass(frozen=True)
class Option:
    """A way to set up TCP."""

    name: str
    route: str = ""
    """Attributes of the route, as `ip route` takes them."""
    sockets: tuple[tuple[int, int], ...] = ()
    """Socket options and their values."""
    quickack: bool = False
    """Set TCP_QUICKACK again before every receive, since the kernel clears it."""


OPTIONS = (
    Option("as it is: cubic, rto_min 200 ms"),
    Option("QUICKACK before every receive", quickack=True),
    Option("quickack 1 (route)", route="quickack 1"),
    Option("thin-stream linear timeouts", sockets=((THIN_LINEAR_TIMEOUTS, 1),)),
    Option("BBR", route="congctl bbr"),
    Option("rto_min 50 ms (route)", route="rto_min 50ms"),
    Option("rto_min 20 ms (route)", route="rto_min 20ms"),
    Option("rto_min 10 ms (route)", route="rto_min 10ms"),
    Option("rto_min 10 ms (socket)", sockets=((RTO_MIN_US, 10_000),)),
    Option("rto_min 50 ms, quickack 1", route="rto_min 50ms quickack 1"),
    Option("rto_min 20 ms, quickack 1", route="rto_min 20ms quickack 1"),
    Option("rto_min 10 ms, quickack 1", route="rto_min 10ms quickack 1"),
    Option("rto_min 20 ms, quickack 1, BBR", route="rto_min 20ms quickack 1 congctl bbr"),
)


def exchange(rank: int, option: Option, loss: float, size: int, requests: int) -> list[float]:
    """Be one of two devices that swap `size` bytes a layer; return the seconds that each request took."""
    number = rank + 1
    other = f"10.77.0.{2 - rank}"
    lossless = replace(RULE, source=f"d{1 - rank}", source_address=other)
    shaper = Shaper("eth0")
    shaper.apply(DeviceRules(f"d{rank}", f"10.77.0.{number}", (lossless,), None))
    route = option.route if "congctl" in option.route else f"{option.route} congctl cubic"
    line = ["ip", "route", "replace", "10.77.0.0/24", "dev", "eth0", "src", f"10.77.0.{number}", *route.split()]
    subprocess.run(line, check=True)
    peer = _connect(rank, other)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in option.sockets:
        peer.setsockopt(socket.IPPROTO_TCP, name, value)
    shaper.change(shaper.prepare([replace(lossless, loss=Bernoulli(loss))]))
    _swap(peer, size, option.quickack)
    times_s = []
    for _ in range(requests):
        began_s = time.monotonic()
        for _ in range(LAYERS):
            time.sleep(COMPUTE_S)
            _swap(peer, size, option.quickack)
        times_s.append(time.monotonic() - began_s)
    time.sleep(1.0)  # what the other still waits for may have to be sent again
    peer.close()
    return times_s


def _connect(rank: int, other: str) -> socket.socket:
    if rank == 0:
        with socket.create_server(("10.77.0.1", PORT)) as server:
            return server.accept()[0]
    for _ in itertools.count():
        try:
            return socket.create_connection((other, PORT), timeout=60)
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise AssertionError


def _swap(peer: socket.socket, size: int, quickack: bool) -> None:
    sender = threading.Thread(target=peer.sendall, args=(bytes(size),))  # both send at once, more than buffers hold
    sender.start()
    if quickack:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    missing = size
    while missing:
        missing -= len(peer.recv(missing))
    sender.join()


def main() -> None:
    """Measure every option at every loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loss_pct", nargs="*", type=float, default=[1.0, 5.0])
    parser.add_argument("--bytes", type=int, default=MESSAGE_BYTES)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--only", default="", help="options whose name holds this text")
    asked = parser.parse_args()
    for loss_pct in asked.loss_pct:
        print(f"{asked.bytes} B a layer, loss {loss_pct:g} %: ms a request, {asked.requests} requests")  # noqa: T201
        for option in (each for each in OPTIONS if asked.only in each.name):
            network = Network(2)
            network.build()
            try:
                how = (option, loss_pct / 100, asked.bytes, asked.requests)
                other = network.start("d1", exchange, 1, *how)
                times_s = network.call("d0", exchange, 0, *how)
                other.stop()
            except AssertionError as error:
                print(f"{option.name}: {str(error).strip().splitlines()[-1]}", flush=True)  # noqa: T201
                continue
            finally:
                network.remove()
            cuts = statistics.quantiles(times_s, n=100)
            row = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(times_s)}
            shown = json.dumps({name: round(1000 * value) for name, value in row.items()})
            print(f"{option.name:34} {shown}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
