"""Round trip, message times and bulk rate of the links of a slot, over one TCP connection each.

The receiver asks, the sender does: P for one byte, M for a message after a pause, B for a bulk transfer, E to end.
"""

import contextlib
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator

from testbed.calibration import (
    HEADER_BYTES,
    LinkPlan,
    Plan,
    Row,
    bulk_bytes,
    judge_message,
    judge_rate,
    judge_round_trip,
    message_sizes,
    window_bytes,
)
from testbed.device_client import DeviceClient
from testbed.probe.slot import PORT, TIMEOUT_S, Sender, own_links

__all__ = ["measure_speed"]

REQUEST = struct.Struct("!cI")
STAMP = struct.Struct("!q")
IDLE_S = 0.05
"""Pause before a message: buckets are full and queues empty after a fraction of this."""
ATTEMPTS = 4
"""A value out of tolerance is measured again so often: other programs of the machine disturb it. The best counts."""
WARM_UP_SHARE = 0.2
"""Leading part of a bulk transfer that is not timed: TCP is still filling its window."""
TCP_WINDOW_CLAMP = 10
DATA_SEGMENTS_IN = struct.Struct("=152xI")
"""Place of tcpi_data_segs_in in `struct tcp_info`."""


def measure_speed(plan: Plan, device: str, links: list[LinkPlan], slot: str, call: DeviceClient) -> list[Row]:
    """Measure the link of a slot that ends at the device, and serve the one that begins there."""
    incoming, outgoing = own_links(links, device)
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(plan.addresses[device], incoming)) if incoming else None
        call.ask(op="barrier", name=f"{slot}-ready")
        sender = Sender(_serve, plan.addresses[outgoing.destination]) if outgoing else None
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
