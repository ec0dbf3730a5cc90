"""Numbered datagrams over a link whose rules change, each stamped when it leaves and when it arrives."""

import socket
import statistics
import struct
import time
from collections.abc import Sequence
from typing import Any

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
