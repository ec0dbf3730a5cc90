"""Datagram ports on loopback whose packets a test may lose, and ranks as threads that use them."""

import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from strategy_worlds import band_of
from torch import Tensor

from astra.collectives import Collectives
from astra.models import ModelAdapter
from astra.strategies import STRATEGIES, RankContext, Request
from astra.timeline import Timeline
from astra.transport.datagram import Address, DatagramPort, DatagramTraffic
from astra.transport.datagram_framing import Datagram, decode_datagram
from astra.transport.inproc import connect

LOOPBACK = "127.0.0.1"
TOKEN = 0xDEADBEEF
KEY = bytes(range(32))
TIMEOUT_S = 30.0

Loses = Callable[[int, int, Datagram], bool]
"""Takes a packet's position on its way between two ranks, the receiver and the datagram; says whether it is lost."""


def nothing_lost(position: int, receiver: int, datagram: Datagram) -> bool:
    return False


class LossySocket(socket.socket):
    """A UDP socket on loopback that loses some of what it is to send, as a network would: without telling."""

    def __init__(self) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_DGRAM)
        self.setsockopt(socket.SOL_SOCKET, 35, 1)
        self.bind((LOOPBACK, 0))
        self.loses: Loses = nothing_lost
        self.ranks: dict[Address, int] = {}
        self.sent: list[tuple[int, Datagram]] = []
        self._positions: dict[int, int] = {}

    def sendto(self, packet: bytes, address: Address) -> int:  # type: ignore[override]
        receiver, datagram = self.ranks[address], decode_datagram(packet, 0.0)
        assert datagram is not None, "a port sends datagrams only"
        position = self._positions.get(receiver, 0)
        self._positions[receiver] = position + 1
        self.sent.append((receiver, datagram))
        return len(packet) if self.loses(position, receiver, datagram) else super().sendto(packet, address)


@contextmanager
def ports(world_size: int, loses: Loses = nothing_lost) -> Iterator[tuple[list[DatagramPort], list[LossySocket]]]:
    """Give connected ports and their sockets."""
    sockets = [LossySocket() for _ in range(world_size)]
    addresses: list[Address] = [each.getsockname() for each in sockets]
    made = []
    for rank, own in enumerate(sockets):
        own.loses, own.ranks = loses, {address: peer for peer, address in enumerate(addresses)}
        peers = {peer: address for peer, address in enumerate(addresses) if peer != rank}
        made.append(DatagramPort(rank, TOKEN, peers, own, key=KEY))
    try:
        yield made, sockets
    finally:
        for port in made:
            port.close()


@dataclass
class Served:
    """What the ranks of some requests left behind."""

    logits: list[Tensor]
    traffic: list[DatagramTraffic]
    missing: int
    expected: int
    sent: list[list[tuple[int, Datagram]]] = field(default_factory=list)


def serve(
    model: ModelAdapter,
    config: Any,
    weights: Sequence[float],
    inputs: Tensor,
    *,
    loses: Loses = nothing_lost,
    codebooks: Path | None = None,
    requests: int = 1,
) -> Served:
    """Answer requests about one input with a thread a rank, whose datagrams `loses` decides about."""
    strategy = STRATEGIES[config.name]
    ranges = strategy.partition(model.shape, config, weights)
    transports = connect(len(weights))
    with ports(len(weights), loses) as (opened, sockets):
        collectives = [
            Collectives(transport, TIMEOUT_S, port) for transport, port in zip(transports, opened, strict=True)
        ]

        def one_rank(rank: int) -> list[Tensor | None]:
            context = RankContext(model, collectives[rank], ranges, tuple(weights), Timeline(rank), codebooks)
            ready = strategy(context, config)
            return [ready.forward(Request(n, *band_of(model, inputs, ranges[rank]))) for n in range(requests)]

        with ThreadPoolExecutor(len(weights)) as pool:
            answers = list(pool.map(one_rank, range(len(weights))))
        traffic = [port.traffic for port in opened]
    logits = [answer for answer in answers[0] if answer is not None]
    missing = sum(each.rows.missing for each in collectives)
    expected = sum(each.rows.expected for each in collectives)
    return Served(logits, traffic, missing, expected, [each.sent for each in sockets])
