"""Exchanges between all ranks, on bytes, over any `Transport`.

Who sends what to whom, and nothing else: tensors become bytes in `wire`, bytes become packets in `transport`.
Everything is sent straight from its owner to each peer; there is no relay. Where it says `forgiving`, what peers were
to send that were declared lost (see `control`) is left out; everywhere else it is missed.
"""

import hashlib
import struct
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

from astra.errors import PeerTimeoutError
from astra.transport import PeerGoneError, Tag, Transport, Watch
from astra.transport.datagram import DatagramPort
from astra.transport.watch import Waiting

__all__ = ["Collectives", "PendingGather", "RowCount"]

Payload = bytes | bytearray | memoryview

DIGESTS = 2**64

LOOK_FOR_MESSAGE_S = 0.01
"""How often a rank that waits for a datagram looks for the message that stands in for it."""


class PendingGather:
    """Peers' payloads on their way; do the local part of the work before asking for them."""

    def __init__(
        self, transport: Transport, tag: Tag, peers: Collection[int], timeout_s: float, *, forgiving: bool = False
    ):
        self._transport = transport
        self._tag = tag
        self._missing = set(peers)
        self._received: dict[int, memoryview] = {}
        self._timeout_s = timeout_s
        self._forgiving = forgiving

    def arrivals(self) -> Iterator[tuple[int, memoryview]]:
        """Yield (peer, payload) in order of arrival, without those already yielded.

        Raises:
            PeerTimeoutError: nothing came for `timeout_s` seconds; names every peer that is missing.
        """
        while self._missing:
            try:
                peer, payload = self._transport.receive_any(frozenset(self._missing), self._tag, self._timeout_s)
            except PeerGoneError:
                if not self._forgiving:
                    raise
                self._missing -= self._transport.watch.gone
                continue
            self._missing.discard(peer)
            self._received[peer] = payload
            yield peer, payload

    def wait(self) -> dict[int, memoryview]:
        """Wait for all and give payloads by peer, in order of rank; if forgiving, of those that are not gone.

        Raises:
            PeerTimeoutError: as `arrivals`.
        """
        for _ in self.arrivals():
            pass
        return dict(sorted(self._received.items()))


class RowCount:
    """How many rows peers should have sent as datagrams so far, and how many of them were missing when needed.

    Two sums of digests, modulo 2**64, stand for which they were: what was sent, and what was missing. They may be
    subtracted and added over ranks like counts, and are equal in two runs only if the same was sent, or was missing.
    """

    def __init__(self) -> None:
        self.expected = 0
        self.missing = 0
        self.sent_sum = 0
        self.missing_sum = 0

    def add(self, where: tuple[int, int, int], missing: Sequence[bool]) -> None:
        """Count the rows of a layer: of a request, a layer and the rank that waited, which ones were missing."""
        self.expected += len(missing)
        if any(missing):
            self.missing += sum(missing)
            self.missing_sum = (self.missing_sum + _digest(where, bytes(missing))) % DIGESTS

    def note_sent(self, where: tuple[int, int, int], pieces: Sequence[bytes]) -> None:
        """Take note of the rows that a rank sends in a layer of a request, copies left out."""
        self.sent_sum = (self.sent_sum + _digest(where, b"".join(pieces))) % DIGESTS


def _digest(where: tuple[int, int, int], data: bytes) -> int:
    digest = hashlib.blake2b(struct.pack("<3I", *where) + data, digest_size=8)
    return int.from_bytes(digest.digest(), "little")


class Collectives:
    """The exchanges of one rank; every call must be made by all ranks concerned, with the same tag."""

    def __init__(self, transport: Transport, timeout_s: float, datagrams: DatagramPort | None = None):
        self.transport = transport
        self.timeout_s = timeout_s
        self.datagrams = datagrams
        """For rows that need not arrive; None where no strategy has any."""
        self.rows = RowCount()
        self.rank = transport.rank
        self.world_size = transport.world_size
        self.peers = tuple(rank for rank in range(transport.world_size) if rank != transport.rank)

    def start_all_gather(self, tag: Tag, payload: Payload, peers: Collection[int] | None = None) -> PendingGather:
        """Send the payload to every peer (or to those named, who must name this rank too) and do not wait."""
        chosen = self.peers if peers is None else tuple(peers)
        return self.start_exchange(tag, payload, to=chosen, of=chosen)

    def start_exchange(
        self, tag: Tag, payload: Payload, *, to: Collection[int], of: Collection[int], forgiving: bool = False
    ) -> PendingGather:
        """Send the payload to the peers `to` and expect those of the peers `of`; do not wait."""
        for peer in self.in_turn(to):
            self.transport.send(peer, tag, payload)
        return PendingGather(self.transport, tag, of, self.timeout_s, forgiving=forgiving)

    def start_all_to_all(self, tag: Tag, payloads: Mapping[int, Payload]) -> PendingGather:
        """Send each peer its own payload of `payloads` and expect one of every peer; do not wait."""
        for peer in self.in_turn(self.peers):
            self.transport.send(peer, tag, payloads[peer])
        return PendingGather(self.transport, tag, self.peers, self.timeout_s)

    @property
    def watch(self) -> Watch:
        """The transport's."""
        return self.transport.watch

    def lookers(self, causal: bool) -> tuple[int, ...]:
        """Return the peers that attend to this rank's tokens: all, or the later ones in a causal model."""
        return tuple(peer for peer in self.peers if peer > self.rank or not causal)

    def looked_at(self, causal: bool) -> tuple[int, ...]:
        """Return the peers whose tokens this rank attends to: all, or the earlier ones in a causal model."""
        return tuple(peer for peer in self.peers if peer < self.rank or not causal)

    def all_gather(self, tag: Tag, payload: Payload) -> dict[int, memoryview]:
        """Give every peer's payload; this rank's own is not among them."""
        return self.start_all_gather(tag, payload).wait()

    def gather(
        self, tag: Tag, payload: Payload, root: int = 0, *, forgiving: bool = False
    ) -> dict[int, memoryview] | None:
        """Bring all payloads to the root; it gets those of its peers, the others get None."""
        if self.rank == root:
            return PendingGather(self.transport, tag, self.peers, self.timeout_s, forgiving=forgiving).wait()
        self.transport.send(root, tag, payload)
        return None

    def broadcast(self, tag: Tag, payload: Payload | None, root: int = 0) -> memoryview:
        """Give the root's payload to all; only the root's argument counts."""
        if self.rank != root:
            return self.transport.receive(root, tag, self.timeout_s)
        assert payload is not None, "the root must have something to broadcast"
        for peer in self.in_turn(self.peers):
            self.transport.send(peer, tag, payload)
        return memoryview(payload)

    def call(self, tag: Tag, copies: int) -> None:
        """Tell all peers that a request has begun: by `copies` datagrams, and by a message in case those are lost."""
        assert self.datagrams is not None, "see `await_call`"
        for _ in range(copies):
            for peer in self.in_turn(set(self.peers) - self.watch.gone):
                self.datagrams.call(peer, tag.request)
        self.broadcast(tag, b"", self.rank)

    def await_call(self, tag: Tag, root: int = 0) -> bool:
        """Wait for the root's `call`; whether it came as a datagram, so that its message is still to be received.

        Raises:
            PeerTimeoutError: Neither came.
        """
        assert self.datagrams is not None, "calls are for ranks with ports"
        since_s = time.monotonic()
        while True:
            self.watch.waiting = Waiting((root,), tag, since_s)
            try:
                if self.datagrams.await_call(root, tag.request, LOOK_FOR_MESSAGE_S):
                    return True
                self.transport.receive(root, tag, 0.0)
                return False
            except PeerTimeoutError:
                if time.monotonic() - since_s >= self.timeout_s:
                    raise PeerTimeoutError(
                        f"rank {self.rank} waited {self.timeout_s:g} s for rank {root} to begin request {tag.request}; "
                        "see whether it is still running and whether the link between them is up, or raise timeout_s"
                    ) from None
            finally:
                self.watch.waiting = None

    def scatter(
        self, tag: Tag, payloads: Sequence[Payload] | Mapping[int, Payload] | None, root: int = 0
    ) -> memoryview:
        """Give `payloads[r]` of the root to each rank r, the root's own included."""
        if self.rank != root:
            return self.transport.receive(root, tag, self.timeout_s)
        assert payloads is not None, "the root must have something to scatter"
        assert len(payloads) == self.world_size, "one payload for each rank"
        for peer in self.in_turn(self.peers):
            self.transport.send(peer, tag, payloads[peer])
        return memoryview(payloads[root])

    def in_turn(self, peers: Collection[int]) -> list[int]:
        """Begin with the next higher rank, so that not all ranks send to the same one first."""
        return sorted(peers, key=lambda peer: (peer - self.rank) % self.world_size)
