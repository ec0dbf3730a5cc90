"""Datagrams between ranks, beside a reliable transport: one UDP socket a rank, nothing acknowledged or sent again.

    send ──► UDP ──► the peer's socket buffer ──drain──► by (request, layer) ──collect──► the caller
                                                 ├─ the word that a request has begun ──await_call──► the caller
                                                 ├─ of a layer that is over: late, counted and kept aside
                                                 ├─ of another run, epoch or address: foreign, counted
                                                 └─ unreadable, or its tag is wrong: malformed, counted

There is no thread: packets wait in the kernel's buffer until the rank asks, and the kernel notes when each one came,
so that measuring arrivals costs the computing thread nothing. `open_port` tells ranks one another's ports over the
reliable transport, and the run's key, which every datagram is tagged with: it is as secret as that transport keeps it.
A datagram that comes again is one more copy, and late once its layer is over.
"""

import logging
import secrets
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

import msgpack

from astra.errors import TransportError
from astra.transport import Tag, Transport
from astra.transport.datagram_framing import (
    CALL_LAYER,
    DATAGRAM_HEADER_BYTES,
    KEY_BYTES,
    PIECE_BYTES,
    Datagram,
    Label,
    call_label,
    decode_datagram,
    encode_header,
    is_sealed,
    seal,
)

__all__ = ["Address", "DatagramPort", "DatagramTraffic", "open_port"]

_LOGGER = logging.getLogger(__name__)

RECEIVE_BUFFER_BYTES = 4 << 20
"""Asked of the kernel, which counts up to 2.3 KB for a packet and doubles what it grants: 3,500 packets. It may grant
less (`net.core.rmem_max`); what then finds the buffer full is counted as overflowed."""

READ_AT_ONCE = 4096
"""Most datagrams read before the caller goes on, so that a flood costs it time but does not hold it up for ever."""

KEPT_DATAGRAMS = 4096
"""Most datagrams of layers to come that are kept; whatever comes beyond that is dropped as foreign."""

_SO_TIMESTAMPNS = 35
_SO_RXQ_OVFL = 40
_TIMESPEC = struct.Struct("@ll")
_COUNT = struct.Struct("@I")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size) + socket.CMSG_SPACE(_COUNT.size)
_NS_PER_S = 1e9
_CALL, _ANSWER = Tag(0, 0, "port"), Tag(0, 0, "ports")

Address = tuple[str, int]
"""IPv4 address and port."""


@dataclass(frozen=True, slots=True)
class DatagramTraffic:
    """What one rank has sent and received so far; differences give a request's share."""

    payload_bytes_sent: int
    """Without headers, copies and parity included."""
    sent: int
    refused: int
    """Not sent, since the kernel had no way to the peer: as good as lost."""
    received: int
    """Of this run, copies and late ones included."""
    late: int
    """Of a layer that was over when they were read."""
    foreign: int
    """Of another run or epoch, from an address that is not the sender's, or too far ahead."""
    malformed: int
    """Unreadable, not made with the run's key, or unfit for its message."""
    overflowed: int
    """Dropped by the kernel because this rank's buffer was full."""


class DatagramPort:
    """One rank's socket; made by `open_port`. Belongs to one thread."""

    def __init__(self, rank: int, token: int, peers: dict[int, Address], own: socket.socket, *, key: bytes):
        self.rank = rank
        self.epoch = 0
        """Goes into every datagram; those of another one are foreign. Whoever restarts the ranks counts it up."""
        self.late: deque[Datagram] = deque(maxlen=KEPT_DATAGRAMS)
        """Those of layers that were over, for whoever wants to know how late they were; takes what it reads."""
        self._token = token
        self._key = key
        self._peers = peers
        self._socket = own
        self._poller = select.poll()
        self._poller.register(own, select.POLLIN)
        self._now_at = (0, 0)
        self._waiting: dict[tuple[int, int], list[Datagram]] = {}
        self._kept = 0
        self._reached: dict[int, tuple[int, int]] = {}
        self._counts = dict.fromkeys(DatagramTraffic.__slots__, 0)

    @property
    def traffic(self) -> DatagramTraffic:
        """The counters as they stand now."""
        return DatagramTraffic(**self._counts)

    def begin(self, request: int, layer: int) -> None:
        """Note that whatever belongs to an earlier layer or request is late from now on."""
        self._drain()
        self._now_at = (request, layer)
        for key in [key for key in self._waiting if key < self._now_at]:
            over = self._waiting.pop(key)
            self._kept -= len(over)
            self._counts["late"] += len(over)
            self.late.extend(over)

    def send(self, peer: int, label: Label, piece: bytes) -> None:
        """Send one datagram to a peer; it may arrive or not.

        Raises:
            TransportError: The label does not fit the header.
        """
        packet = seal(self._key, encode_header(self._token, self.epoch, self.rank, label), piece)
        try:
            self._socket.sendto(packet, self._peers[peer])
        except OSError as error:
            self._note("refused", f"could not send to rank {peer} ({error})")
        else:
            self._counts["sent"] += 1
            self._counts["payload_bytes_sent"] += len(piece)

    def collect(self, timeout_s: float, of: Collection[int] = ()) -> list[Datagram]:
        """Hand out what has come for the layer that was begun; wait up to `timeout_s` seconds if there is nothing.

        Waiting ends too when one of the peers `of` turns out to be past that layer.
        """
        self._await(lambda: self._now_at in self._waiting or any(map(self.is_past, of)), timeout_s)
        found = self._waiting.pop(self._now_at, [])
        self._kept -= len(found)
        return found

    def is_past(self, peer: int) -> bool:
        """Whether a peer has sent something of a later layer than that which was begun, so that what is not here of
        that one was lost, unless the network changes the order of packets.
        """
        return self._reached.get(peer, self._now_at) > self._now_at

    def call(self, peer: int, request: int) -> None:
        """Tell a peer that a request has begun; it may hear of it or not."""
        self.send(peer, call_label(request), b"")

    def await_call(self, sender: int, request: int, timeout_s: float) -> bool:
        """Wait for a peer's word that a request has begun, or rows that it sends in it; say whether any has come."""
        return self._await(lambda: self._reached.get(sender, (-1, 0))[0] >= request, timeout_s)

    def reject(self, sender: int, what: object) -> None:
        """Count something that was handed out but is not what its sender should have sent."""
        self._note("malformed", f"rank {sender} sent what does not fit its message: {what}")

    def close(self) -> None:
        """Let go of the socket; may be called again."""
        self._socket.close()

    def _await(self, is_enough: Callable[[], bool], timeout_s: float) -> bool:
        """Read what comes until it is enough, for up to `timeout_s` seconds; say whether it is."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._drain()
            if is_enough():
                return True
            remaining_s = deadline_s - time.monotonic()
            if remaining_s <= 0:
                return False
            self._poller.poll(remaining_s * 1000)

    def _drain(self) -> None:
        """Read what the kernel holds, without waiting."""
        for _ in range(READ_AT_ONCE):
            try:
                packet, ancillary, flags, address = self._socket.recvmsg(
                    DATAGRAM_HEADER_BYTES + PIECE_BYTES + 1, _ANCILLARY_BYTES, socket.MSG_DONTWAIT
                )
            except BlockingIOError:
                return
            datagram = None if flags & socket.MSG_TRUNC else decode_datagram(packet, self._arrival_s(ancillary))
            if datagram is None:
                self._note("malformed", f"{len(packet)} bytes from {address} are no datagram")
            else:
                self._offer(datagram, packet, address)

    def _arrival_s(self, ancillary: list[tuple[int, int, bytes]]) -> float:
        """Return when the kernel had the packet; count what it says it dropped."""
        age_s = 0.0
        for _, kind, data in ancillary:
            if kind == _SO_TIMESTAMPNS:
                seconds, nanoseconds = _TIMESPEC.unpack(data)
                age_s = max(0.0, time.time() - seconds - nanoseconds / _NS_PER_S)
            elif kind == _SO_RXQ_OVFL:
                (self._counts["overflowed"],) = _COUNT.unpack(data)
        return time.monotonic() - age_s

    def _offer(self, datagram: Datagram, packet: bytes, address: Address) -> None:
        key = (datagram.label.request, datagram.label.layer)
        ours = (datagram.token, datagram.epoch) == (self._token, self.epoch)
        if not ours or self._peers.get(datagram.sender) != address or self._kept >= KEPT_DATAGRAMS:
            self._note("foreign", f"{address} sent a datagram as rank {datagram.sender} that is not of this run")
            return
        if not is_sealed(self._key, packet):
            self._note("malformed", f"{address} sent a datagram as rank {datagram.sender} without the run's key")
            return
        self._counts["received"] += 1
        is_call = datagram.label.layer == CALL_LAYER
        reached = (datagram.label.request, -1) if is_call else key
        self._reached[datagram.sender] = max(reached, self._reached.get(datagram.sender, reached))
        if is_call:
            return
        if key < self._now_at:
            self._counts["late"] += 1
            self.late.append(datagram)
        else:
            self._kept += 1
            self._waiting.setdefault(key, []).append(datagram)

    def _note(self, counter: str, what: str) -> None:
        if self._counts[counter] == 0:
            _LOGGER.warning("rank %d: %s; more are counted as %s but not logged", self.rank, what, counter)
        self._counts[counter] += 1


def open_port(transport: Transport, address: str, timeout_s: float) -> DatagramPort:
    """Open a port at this rank's data address and learn those of all others over the reliable transport.

    Every rank must call this. The kernel chooses the port.

    Raises:
        PeerTimeoutError: A rank did not say where it is.
        TransportError: The address is not this machine's.
    """
    own = _bind(transport.rank, address)
    try:
        here = [*own.getsockname()]
        if transport.rank == 0:
            ranks = range(1, transport.world_size)
            places = [here, *(_place(transport.receive(rank, _CALL, timeout_s), rank) for rank in ranks)]
            answer = msgpack.packb([secrets.randbits(32), secrets.token_bytes(KEY_BYTES), places])
            for rank in ranks:
                transport.send(rank, _ANSWER, answer)
        else:
            transport.send(0, _CALL, msgpack.packb(here))
            answer = transport.receive(0, _ANSWER, timeout_s)
        token, key, found = _places(answer, transport.world_size)
    except BaseException:
        own.close()
        raise
    peers = {rank: place for rank, place in enumerate(found) if rank != transport.rank}
    return DatagramPort(transport.rank, token, peers, own, key=key)


def _place(packed: bytes | memoryview, rank: int) -> Address:
    """Read where a rank's port is. Raises TransportError."""
    match _unpack(packed):
        case [str(host), int(port)] if 0 < port < 65536:
            return host, port
    raise TransportError(
        f"rank {rank}: must say where its datagram port is, got something else; use one version on all"
    )


def _places(packed: bytes | memoryview, world_size: int) -> tuple[int, bytes, list[Address]]:
    """Read rank 0's answer: token, key and all places. Raises TransportError."""
    match _unpack(packed):
        case [int(token), bytes(key), list(places)] if len(key) == KEY_BYTES and len(places) == world_size:
            return token, key, [_place(msgpack.packb(place), rank) for rank, place in enumerate(places)]
    raise TransportError("rank 0: must say where all datagram ports are, got something else; use one version on all")


def _unpack(packed: bytes | memoryview) -> object:
    try:
        found: object = msgpack.unpackb(packed)
    except (ValueError, TypeError, msgpack.UnpackException):
        return None
    return found


def _bind(rank: int, address: str) -> socket.socket:
    own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    own.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    own.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
    try:
        own.bind((address, 0))
    except OSError as error:
        own.close()
        raise TransportError(
            f"rank {rank}: data address must be one of this machine's, got {address!r} ({error}); see MASTER_ADDR"
        ) from error
    return own
