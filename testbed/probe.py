"""The calibration program: run on every device at once, it measures every directed link with real packets.

    slot by slot (see `calibration`), the links of a slot at the same time:
      receiver --P--> sender --1 byte--> receiver            round trip
      receiver --M n--> sender --pause, message--> receiver  completion of one message after idle
      receiver --B n--> sender --n bytes--> receiver         bulk rate
    and in the loss phase numbered datagrams, with the kernel's counters read before and after

A program like any other: it talks TCP and UDP, and to the device socket for rows, barriers and counters. A message is
timed from the sender's clock to the receiver's: CLOCK_MONOTONIC is one clock for all namespaces and containers of a
machine (time namespaces aside). It cannot measure links between machines.
"""

import contextlib
import os
import select
import socket
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from testbed.calibration import (
    FRAME_BYTES,
    HEADER_BYTES,
    LinkPlan,
    Plan,
    Row,
    bulk_bytes,
    describe,
    judge_loss,
    judge_message,
    judge_rate,
    judge_round_trip,
    make_plan,
    message_sizes,
    slots,
    window_bytes,
)
from testbed.device_client import DeviceClient

__all__ = ["COMMAND", "Plan", "describe", "main", "make_plan"]

COMMAND = ("python3", "-m", "testbed.probe")
"""The device's own interpreter, which stands first in its PATH."""
"""What to run on every device, with a Plan as its configuration."""

PORT = 29400
REQUEST = struct.Struct("!cI")
STAMP = struct.Struct("!q")
DATAGRAM = struct.Struct("!I96x")
DATAGRAM_FRAME_BYTES = 14 + 20 + 8 + DATAGRAM.size
IDLE_S = 0.05
"""Pause before a message: buckets are full and queues empty after a fraction of this."""
ATTEMPTS = 4
"""A value out of tolerance is measured again so often: other programs of the machine disturb it. The best counts."""
TIMEOUT_S = 60.0
QUIET_S = 0.3
"""No datagram for so long (and the link's delay and queue) means that none is coming."""
BATCH = 50
WARM_UP_SHARE = 0.2
"""Leading part of a bulk transfer that is not timed: TCP is still filling its window."""
TCP_WINDOW_CLAMP = 10
DATA_SEGMENTS_IN = struct.Struct("=152xI")
"""Place of tcpi_data_segs_in in `struct tcp_info`."""


def main() -> None:
    """Measure every link that ends here and serve those that begin here."""
    plan = Plan.model_validate_json(Path(os.environ["TESTBED_CONFIG"]).read_text())
    device = os.environ["TESTBED_DEVICE"]
    sys.setswitchinterval(1e-4)  # sender and receiver share one interpreter; the default of 5 ms would be measured
    call = DeviceClient(os.environ["TESTBED_SOCKET"])
    with contextlib.closing(call):
        schedule = slots(plan)
        for number, links in enumerate(schedule):
            call.ask(op="progress", label=f"calibrating {plan.phase}", done=number, total=len(schedule))
            measure = _measure_speed if plan.phase == "speed" else _measure_loss
            for row in measure(plan, device, links, f"{plan.phase}-{number}", call):
                call.ask(op="row", table="calibration", row=row)
        call.ask(op="progress", label=f"calibrating {plan.phase}", done=len(schedule), total=len(schedule))


def _own(links: list[LinkPlan], device: str) -> tuple[LinkPlan | None, LinkPlan | None]:
    """Return the link that ends at the device and the one that begins there, of those in a slot."""
    incoming = next((link for link in links if link.destination == device), None)
    return incoming, next((link for link in links if link.source == device), None)


# Rate, messages, round trip


def _measure_speed(plan: Plan, device: str, links: list[LinkPlan], slot: str, call: DeviceClient) -> list[Row]:
    incoming, outgoing = _own(links, device)
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(plan.addresses[device], incoming)) if incoming else None
        call.ask(op="barrier", name=f"{slot}-ready")
        sender = _Thread(_serve, plan.addresses[outgoing.destination]) if outgoing else None
        if incoming and listener:
            connection, _ = listener.accept()
            with connection:
                rows = _measure_link(plan, incoming, connection)
        if sender:
            sender.finish()
    call.ask(op="barrier", name=f"{slot}-done")
    return rows


def _measure_link(plan: Plan, link: LinkPlan, connection: socket.socket) -> list[Row]:
    _prepare(connection)
    _round_trip(connection)  # the first one meets a connection that is still being set up
    rows = [_best(lambda: judge_round_trip(link, _median(lambda: _round_trip(connection), plan.repeats)))]
    for size in message_sizes(plan, link):
        rows.append(_best(lambda size=size: _judged_message(plan, link, connection, size)))  # type: ignore[misc]
    rows.append(_best(lambda: judge_rate(link, _bulk_rate(connection, bulk_bytes(plan, link)))))
    _request(connection, b"E")
    return rows


def _judged_message(plan: Plan, link: LinkPlan, connection: socket.socket, size: int) -> Row:
    return judge_message(link, size, _median(lambda: _message_time(connection, size), plan.repeats))


def _best(measure: Callable[[], Row]) -> Row:
    """Measure until a row is within tolerance; return the last, or after ATTEMPTS the one that came nearest."""
    rows: list[Row] = []
    for _ in range(ATTEMPTS):
        rows.append(measure())
        if rows[-1]["ok"]:
            return rows[-1]
    return min(rows, key=lambda row: abs(float(row["measured"] or 0) - float(row["asked"] or 0)))


def _median(measure: Callable[[], float], repeats: int) -> float:
    return statistics.median(measure() for _ in range(repeats))


def _round_trip(connection: socket.socket) -> float:
    time.sleep(IDLE_S)
    began = time.monotonic()
    _request(connection, b"P")
    connection.recv(1)
    return time.monotonic() - began


def _message_time(connection: socket.socket, size: int) -> float:
    """Return the time from the sender's first byte to our last, in seconds."""
    _request(connection, b"M", size)
    received = bytearray(size)
    view = memoryview(received)
    while view:
        view = view[_receive(connection, view) :]
    (sent_ns,) = STAMP.unpack_from(received)
    return (time.monotonic_ns() - int(sent_ns)) / 1e9


def _bulk_rate(connection: socket.socket, size: int) -> float:
    """Return bits per second on the wire of the timed part of a bulk transfer.

    Counts the segments that the kernel received, so that header bytes are exact whatever their size.
    """
    _request(connection, b"B", size)
    buffer = memoryview(bytearray(1 << 16))
    received, start = 0, (0.0, 0, 0)
    while received < size:
        received += _receive(connection, buffer[: size - received])
        if not start[1] and received > size * WARM_UP_SHARE:
            start = (time.monotonic(), received, _segments(connection))
    began, first_bytes, first_segments = start
    taken = time.monotonic() - began
    on_wire = received - first_bytes + HEADER_BYTES * (_segments(connection) - first_segments)
    return on_wire * 8 / taken


def _segments(connection: socket.socket) -> int:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, DATA_SEGMENTS_IN.size)
    return int(DATA_SEGMENTS_IN.unpack(info)[0])


def _receive(connection: socket.socket, view: memoryview) -> int:
    received = connection.recv_into(view)
    if not received:
        raise ConnectionError("probe: the sending device closed the connection")
    return received


def _request(connection: socket.socket, operation: bytes, size: int = 0) -> None:
    connection.sendall(REQUEST.pack(operation, size))


def _serve(address: str) -> None:
    """Be the sender of one link: do what the receiver asks for."""
    with socket.create_connection((address, PORT), TIMEOUT_S) as connection:
        _prepare(connection)
        while True:
            operation, size = REQUEST.unpack(connection.recv(REQUEST.size, socket.MSG_WAITALL))
            if operation == b"P":
                connection.sendall(b"p")
            elif operation == b"M":
                time.sleep(IDLE_S)
                connection.sendall(STAMP.pack(time.monotonic_ns()) + bytes(size - STAMP.size))
            elif operation == b"B":
                connection.sendall(bytes(size))
            else:
                return


def _prepare(connection: socket.socket) -> None:
    connection.settimeout(TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


@contextlib.contextmanager
def _listen(address: str, link: LinkPlan) -> Iterator[socket.socket]:
    with socket.create_server((address, PORT)) as listener:
        listener.settimeout(TIMEOUT_S)
        window = window_bytes(link)
        if window is not None:
            listener.setsockopt(socket.IPPROTO_TCP, TCP_WINDOW_CLAMP, window)
        yield listener


# Loss


def _measure_loss(plan: Plan, device: str, links: list[LinkPlan], slot: str, call: DeviceClient) -> list[Row]:
    """Count the datagrams that come over the incoming link. Nothing else uses it meanwhile: control is by barrier."""
    incoming, outgoing = _own(links, device)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind((plan.addresses[device], PORT))
        before = call.ask(op="mark", name=f"{slot}-before")["links"]
        call.ask(op="barrier", name=f"{slot}-ready")
        sender = None
        if outgoing:
            sender = _Thread(_send_datagrams, plan, outgoing, plan.addresses[outgoing.destination])
        arrived = _collect(datagrams, incoming, plan.loss_packets) if incoming else set()
        if sender:
            sender.finish()
        call.ask(op="barrier", name=f"{slot}-done")
        after = call.ask(op="mark", name=f"{slot}-after")["links"]
    if not incoming:
        return []
    first, last = before[incoming.source], after[incoming.source]
    seen = last["packets"] - first["packets"]
    return judge_loss(
        incoming,
        first=first["packets"],
        missing=sorted(set(range(seen)) - arrived),
        dropped=last["lost"] - first["lost"],
        seen=seen,
    )


def _send_datagrams(plan: Plan, link: LinkPlan, address: str) -> None:
    """Send the sequence at half the link's rate, so that no queue overflows."""
    pause = 0.0 if link.rate_bps is None else 2 * BATCH * _room_bytes(link) * 8 / link.rate_bps
    batch = BATCH
    if link.rate_bps is not None:
        batch = max(1, min(BATCH, int(link.queue_s / 2 * link.rate_bps / 8 / _room_bytes(link))))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        for number in range(plan.loss_packets):
            datagrams.sendto(DATAGRAM.pack(number), (address, PORT))
            if number % batch == batch - 1:
                time.sleep(max(pause * batch / BATCH, 1e-3))


def _room_bytes(link: LinkPlan) -> int:
    """Return how much of the queue a datagram takes; netem, which delays, counts packets as if they were full."""
    return FRAME_BYTES if link.delay_s > 0 else DATAGRAM_FRAME_BYTES


def _collect(datagrams: socket.socket, link: LinkPlan, count: int) -> set[int]:
    """Return the numbers of the datagrams that arrive until it is quiet."""
    batch_s = 0.0 if link.rate_bps is None else 2 * BATCH * _room_bytes(link) * 8 / link.rate_bps
    quiet_s = QUIET_S + link.delay_s + link.jitter_s + link.queue_s + batch_s
    arrived: set[int] = set()
    while select.select([datagrams], [], [], quiet_s)[0]:
        (number,) = DATAGRAM.unpack(datagrams.recv(DATAGRAM.size))
        arrived.add(number)
        if number == count - 1 and link.delay_s == 0:  # with a delay it may have overtaken others
            break
    return arrived


class _Thread(threading.Thread):
    """A thread whose failure is raised by `finish`."""

    def __init__(self, run: Callable[..., None], *arguments: Any):
        super().__init__(daemon=True)
        self._work, self._arguments = run, arguments
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Work, and keep the error if there is one."""
        try:
            self._work(*self._arguments)
        except OSError as error:
            self._error = error

    def finish(self) -> None:
        """Wait for the end and raise what went wrong."""
        self.join(TIMEOUT_S)
        if self._error is not None:
            raise self._error


if __name__ == "__main__":
    main()
