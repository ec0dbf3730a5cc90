"""Which packets the links of a slot lose: numbered datagrams, held against the kernel's counters and the pattern."""

import select
import socket
import struct
import time

from testbed.calibration import FRAME_BYTES, LinkPlan, Plan, Row, judge_loss
from testbed.device_client import DeviceClient
from testbed.probe.slot import PORT, Sender, own_links

__all__ = ["measure_loss"]

DATAGRAM = struct.Struct("!I96x")
DATAGRAM_FRAME_BYTES = 14 + 20 + 8 + DATAGRAM.size
QUIET_S = 0.3
"""No datagram for so long (and the link's delay and queue) means that none is coming."""
BATCH = 50


def measure_loss(plan: Plan, device: str, links: list[LinkPlan], slot: str, call: DeviceClient) -> list[Row]:
    """Count the datagrams that come over the incoming link. Nothing else uses it meanwhile: control is by barrier."""
    incoming, outgoing = own_links(links, device)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind((plan.addresses[device], PORT))
        before = call.ask(op="mark", name=f"{slot}-before")["links"]
        call.ask(op="barrier", name=f"{slot}-ready")
        sender = None
        if outgoing:
            sender = Sender(_send_datagrams, plan, outgoing, plan.addresses[outgoing.destination])
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
