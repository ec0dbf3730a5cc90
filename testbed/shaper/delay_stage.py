"""The program that delays packets where the kernel has no netem: it says when, the kernel keeps them until then.

    NFQUEUE n --(queue, packet id; no payload)--> due = now + delay ± jitter, never before the packet ahead
                                                    └─ when due --verdict: all of queue n up to this id--> stack

One process a device, started by `delays.DelayStage` with its links as one line of JSON on standard input. It answers
`ready` once it holds the queues, and ends when its input does, so never outlives its agent. It imports nothing but the
standard library, in order to start in a moment, and runs as a file.

Source: the kernel's uapi headers nfnetlink.h and nfnetlink_queue.h.
"""

import contextlib
import errno
import gc
import json
import os
import random
import select
import socket
import struct
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

__all__ = ["HeldPackets", "main"]

READY = "ready"
NETLINK_NETFILTER = 12
SUBSYSTEM_QUEUE = 3 << 8
MESSAGE_PACKET, MESSAGE_CONFIG = SUBSYSTEM_QUEUE | 0, SUBSYSTEM_QUEUE | 2
MESSAGE_VERDICT, MESSAGE_VERDICT_BATCH = SUBSYSTEM_QUEUE | 1, SUBSYSTEM_QUEUE | 3
NLMSG_ERROR = 2
NLM_F_REQUEST, NLM_F_ACK = 1, 4
NFQA_CFG_CMD, NFQA_CFG_PARAMS, NFQA_CFG_QUEUE_MAXLEN = 1, 2, 3
NFQA_VERDICT_HDR = 2
BIND, COPY_META = 1, 1
ACCEPT = 1
MAX_HELD = 1 << 17
"""Packets of one link that may be under way; beyond, the kernel drops. 100 Mbps of the smallest frames for 0.6 s."""
RECEIVE_BYTES = 32 << 20
"""Of messages that wait for this process, some 700 bytes each as the kernel counts them."""
SO_RCVBUFFORCE = 33
SOL_NETLINK, NETLINK_NO_ENOBUFS = 270, 5
ROUND_ROBIN_PRIORITY = 1
"""The lowest of real time: a packet that waits for a busy machine is late, and what it takes is little."""
BATCH = 64
"""Messages read before due packets are looked at again."""

HEADER = struct.Struct("=IHHII")
GENERIC = struct.Struct(">BBH")  # family, version, queue number
ATTRIBUTE = struct.Struct("=HH")
QUEUE_NUMBER_AT, PACKET_ID_AT = 18, 24


class HeldPackets:
    """The packets of one link that are under way, by when they are due; times in nanoseconds."""

    def __init__(self, queue: int, *, delay_ns: int, jitter_ns: int, reorder: float, seed: str):
        self.queue = queue
        self._delay_ns, self._jitter_ns, self._reorder = delay_ns, jitter_ns, reorder
        self._random = random.Random(seed)  # noqa: S311 - emulation
        self._in_order: deque[tuple[int, int]] = deque()
        self._overtaking: list[int] = []
        self._last_ns = 0

    def hold(self, packet: int, now_ns: int) -> None:
        """Take a packet in; its delay is uniform in delay ± jitter, or none, as for the k-th packet of every run."""
        if self._reorder and self._random.random() < self._reorder:
            self._overtaking.append(packet)
            return
        due_ns = now_ns + self._delay_ns
        if self._jitter_ns:
            due_ns += round(self._random.uniform(-self._jitter_ns, self._jitter_ns))
        self._last_ns = due_ns = max(due_ns, self._last_ns)
        self._in_order.append((due_ns, packet))

    def next_ns(self) -> int | None:
        """Return when the next packet is due, None if none is under way."""
        if self._overtaking:
            return 0
        return self._in_order[0][0] if self._in_order else None

    def verdicts(self, now_ns: int) -> bytes:
        """Let go of every packet that is due by now; return the messages that tell the kernel."""
        messages = b"".join(_verdict(MESSAGE_VERDICT, self.queue, packet) for packet in self._overtaking)
        self._overtaking.clear()
        last = None
        while self._in_order and self._in_order[0][0] <= now_ns:
            last = self._in_order.popleft()[1]
        return messages if last is None else messages + _verdict(MESSAGE_VERDICT_BATCH, self.queue, last)


def main() -> None:
    """Hold packets until standard input ends."""
    config: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    for path in config["groups"]:
        with contextlib.suppress(OSError):
            Path(path).write_text(str(os.getpid()))
    links = {link["queue"]: HeldPackets(**link) for link in config["links"]}
    queues = _open(list(links))
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(ROUND_ROBIN_PRIORITY))
    gc.disable()  # nothing here makes cycles
    os.write(sys.stdout.fileno(), f"{READY}\n".encode())
    _serve(queues, links)


def _serve(queues: socket.socket, links: dict[int, HeldPackets]) -> None:
    buffer = bytearray(4096)
    orders = sys.stdin.fileno()
    while True:
        now_ns = time.monotonic_ns()
        messages = b"".join([link.verdicts(now_ns) for link in links.values()])
        if messages:
            queues.send(messages)
        due = [due_ns for link in links.values() if (due_ns := link.next_ns()) is not None]
        wait_s = max(0, min(due) - time.monotonic_ns()) / 1e9 if due else None
        readable = select.select([queues, orders], [], [], wait_s)[0]
        if queues in readable:
            _take(queues, links, buffer)
        if orders in readable and not os.read(orders, 1):
            return


def _take(queues: socket.socket, links: dict[int, HeldPackets], buffer: bytearray) -> None:
    """Read what has come, but no more than BATCH messages."""
    with contextlib.suppress(BlockingIOError):
        for _ in range(BATCH):
            queues.recv_into(buffer, 0, socket.MSG_DONTWAIT)
            if int.from_bytes(buffer[4:6], sys.byteorder) == MESSAGE_PACKET:
                queue = int.from_bytes(buffer[QUEUE_NUMBER_AT : QUEUE_NUMBER_AT + 2], "big")
                packet = int.from_bytes(buffer[PACKET_ID_AT : PACKET_ID_AT + 4], "big")
                links[queue].hold(packet, time.monotonic_ns())


def _open(numbers: list[int]) -> socket.socket:
    """Bind these queues, so that their packets come here without payload. Raises OSError as the kernel says."""
    queues = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    queues.bind((0, 0))
    queues.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)
    try:
        queues.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BYTES)
    except PermissionError:  # in a user namespace: as much as everybody may have
        queues.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    for number in numbers:
        bind = _attribute(NFQA_CFG_CMD, struct.pack(">BxH", BIND, socket.AF_INET))
        settings = _attribute(NFQA_CFG_PARAMS, struct.pack(">IB", 0, COPY_META))
        settings += _attribute(NFQA_CFG_QUEUE_MAXLEN, struct.pack(">I", MAX_HELD))
        for body in (bind, settings):
            queues.send(_message(MESSAGE_CONFIG, number, body, NLM_F_REQUEST | NLM_F_ACK))
            _expect_success(queues)
    return queues


def _expect_success(queues: socket.socket) -> None:
    """Read messages up to an acknowledgement; packets cannot have come yet."""
    while True:
        message = queues.recv(4096)
        if HEADER.unpack_from(message)[1] == NLMSG_ERROR:
            code = -struct.unpack_from("=i", message, HEADER.size)[0]
            if code:
                raise OSError(code, f"NFQUEUE: {errno.errorcode.get(code, code)}")
            return


def _verdict(kind: int, queue: int, packet: int) -> bytes:
    return _message(kind, queue, _attribute(NFQA_VERDICT_HDR, struct.pack(">II", ACCEPT, packet)), NLM_F_REQUEST)


def _message(kind: int, queue: int, body: bytes, flags: int) -> bytes:
    length = HEADER.size + GENERIC.size + len(body)
    return HEADER.pack(length, kind, flags, 0, 0) + GENERIC.pack(socket.AF_UNSPEC, 0, queue) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


if __name__ == "__main__":
    main()
