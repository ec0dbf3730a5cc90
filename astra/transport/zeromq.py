"""Ranks as processes, joined by ZeroMQ over TCP: reliable, in order, one connection for each pair of ranks.

    rank 0 ◄──── rank 1        the lower rank binds a port of its own for each higher rank, the higher one connects;
       ▲  ▲────┐  ▲            a DEALER on either side, so nothing is ever addressed or routed
       │       │  │
    rank 2 ──► …               one ZeroMQ message of one part for each frame

`connect` returns once every pair has exchanged a word, so a later send finds its connection open. A send to a lost peer
fails instead of piling up for nobody. There are no heartbeats: a large message on a slow link would look like a dead
peer. libzmq sets TCP_NODELAY and writes a small frame in one piece: 256 codes of 10 bits are one packet.

Two things that libzmq 4.3.5 was seen to do shape this module. With IMMEDIATE=1 the connecting side throws away
messages that have arrived but were not read yet when the peer closes, as a faster rank does after its last layer; so
IMMEDIATE is off, and a monitor tells of the lost connection. And a process aborts (`!_more` in fq.cpp) when that
happens between two parts of a message; so a frame has one part.

With keys every connection is encrypted and both of its ends are known (see `curve`). Without them the token in each
header keeps strangers' frames out, but hides and authenticates nothing, and a stranger who connects to a pair's port
would be dealt some of the bound side's frames: then run it on a network of your own.
"""

import time
import weakref
from collections.abc import Collection

import zmq

from astra.errors import PeerTimeoutError, TransportError
from astra.transport.curve import Gate
from astra.transport.framed import FramedTransport
from astra.transport.framing import (
    CHUNK_BYTES,
    CURVE_FRAME_BYTES,
    HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    Frame,
    Tag,
    cut,
    decode_header,
)
from astra.transport.keys import Keys
from astra.transport.rendezvous import Entry, Guest, Host, Place, Roster, own_address, to_poll_ms

__all__ = ["ZeroMqTransport", "connect"]

QUEUE_FRAMES = MAX_MESSAGE_BYTES // CHUNK_BYTES
"""Frames that may be queued for a peer, and again at its end, before a send waits: 256 MiB."""

SEND_TIMEOUT_S = 1.0
"""How long a send waits for a lost connection, or a full queue, before it fails."""

LINGER_S = 5.0
"""How long `close` waits for queued messages to leave."""

MAX_WORLD_SIZE = 256
"""The header has a byte for the sender's rank."""

_HELLO = Tag(0, 0, "hello")

_Context = zmq.Context[zmq.Socket[bytes]]
_Sockets = dict[int, zmq.Socket[bytes]]


class ZeroMqTransport(FramedTransport):
    """A `Transport` over TCP; made by `connect`.

    If it is dropped without `close`, what is queued is lost and nothing waits.
    """

    def __init__(
        self, place: Place, token: int, gate: Gate, *, context: _Context, sockets: _Sockets, monitors: _Sockets
    ):
        super().__init__(place.rank, place.world_size, token)
        self._gate = gate
        self._context = context
        self._sockets = sockets
        self._monitors = monitors
        self._abandon = weakref.finalize(self, _destroy, context, gate, 0, (*sockets.values(), *monitors.values()))

    def _push(self, peer: int, tag: Tag, frame: Frame) -> None:
        try:
            if self._is_lost(peer):
                raise zmq.Again
            self._sockets[peer].send(b"".join(frame))
        except zmq.Again:
            raise TransportError(
                f"rank {self.rank} could not send to rank {peer}: request {tag.request}, layer {tag.layer}, phase "
                f"{tag.phase!r}; its connection is lost or its queue was full for {SEND_TIMEOUT_S:g} s, see its log"
            ) from None

    def _is_lost(self, peer: int) -> bool:
        monitor = self._monitors.get(peer)
        return monitor is not None and bool(int(monitor.get(zmq.EVENTS)) & zmq.POLLIN)

    def _pull(self, peers: Collection[int], timeout_s: float) -> bool:
        poller = zmq.Poller()
        owners = {}
        for peer in peers:
            poller.register(self._sockets[peer], zmq.POLLIN)
            owners[self._sockets[peer]] = peer
        ready = poller.poll(to_poll_ms(timeout_s))
        for socket, _ in ready:
            self._drain(owners[socket], socket)
        return bool(ready)

    def _drain(self, peer: int, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                frame = socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._mailbox.offer(peer, frame.buffer)

    def _release(self, abort: bool) -> None:
        self._abandon.detach()
        _destroy(self._context, self._gate, 0 if abort else int(LINGER_S * 1000))


def _destroy(context: _Context, gate: Gate, linger_ms: int | None, sockets: Collection[zmq.Socket[bytes]] = ()) -> None:
    """Close everything; `sockets` are kept here since the context only finds those that the collector has left."""
    gate.close()  # whose sockets are another thread's until then
    context.destroy(linger=linger_ms)


def connect(
    rank: int, world_size: int, master_addr: str, master_port: int, timeout_s: float, *, keys: Keys | None = None
) -> ZeroMqTransport:
    """Meet the other ranks and open a connection to each.

    Args:
        rank: this process, 0 to world_size - 1.
        world_size: how many there are.
        master_addr: rank 0's data address.
        master_port: a port that is free there.
        timeout_s: how long all of this may take.
        keys: this rank's; None connects it to whoever is there, in plain text.

    Raises:
        PeerTimeoutError: ranks did not show up or cannot be reached; they are named.
        TransportError: the address or port cannot be used, ranks contradict each other, or their keys differ.
    """
    if not 0 <= rank < world_size <= MAX_WORLD_SIZE:
        raise TransportError(
            f"RANK must be 0 to WORLD_SIZE - 1 and WORLD_SIZE at most {MAX_WORLD_SIZE}, got {rank} of {world_size}; "
            "set both on every device"
        )
    place = Place(rank, world_size, master_addr, master_port)
    context: _Context = zmq.Context(io_threads=1)
    gate = Gate(context, keys if world_size > 1 else None)
    try:
        return _meet(place, context, gate, timeout_s)
    except BaseException:
        _destroy(context, gate, None)
        raise


def _meet(place: Place, context: _Context, gate: Gate, timeout_s: float) -> ZeroMqTransport:
    if place.world_size == 1:
        return ZeroMqTransport(place, 0, gate, context=context, sockets={}, monitors={})
    deadline = time.monotonic() + timeout_s
    address = own_address(place)
    sockets = {peer: _make_socket(context) for peer in range(place.world_size) if peer != place.rank}
    for peer, socket in sockets.items():
        if peer > place.rank:
            gate.serve(socket, (peer,))
        else:
            gate.call(socket, peer)
    with (Host if place.rank == 0 else Guest)(context, place, timeout_s, gate) as rendezvous:
        higher = range(place.rank + 1, place.world_size)
        ports = {peer: sockets[peer].bind_to_random_port(f"tcp://{address}") for peer in higher}
        roster = rendezvous.exchange(Entry(address, ports))
        monitors = {peer: sockets[peer].get_monitor_socket(zmq.EVENT_DISCONNECTED) for peer in range(place.rank)}
        for peer in range(place.rank):
            entry = roster.entries[peer]
            sockets[peer].connect(f"tcp://{entry.address}:{entry.ports[place.rank]}")
        _greet(place, roster, sockets, deadline)
        rendezvous.finish()
    for socket in sockets.values():
        socket.sndtimeo = to_poll_ms(SEND_TIMEOUT_S)
    return ZeroMqTransport(place, roster.token, gate, context=context, sockets=sockets, monitors=monitors)


def _make_socket(context: _Context) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.sndhwm = QUEUE_FRAMES
    socket.rcvhwm = QUEUE_FRAMES
    socket.maxmsgsize = HEADER_BYTES + CHUNK_BYTES + CURVE_FRAME_BYTES
    return socket


def _greet(place: Place, roster: Roster, sockets: _Sockets, deadline: float) -> None:
    """Exchange a word with every peer: the higher rank speaks first, since only it knows where the other is."""
    hello = b"".join(next(cut(roster.token, place.rank, _HELLO, b"")))
    silent = set(sockets)
    for socket in sockets.values():
        socket.sndtimeo = to_poll_ms(deadline - time.monotonic())
    try:
        for peer in range(place.rank):
            sockets[peer].send(hello)
        while silent:
            poller = zmq.Poller()
            for peer in silent:
                poller.register(sockets[peer], zmq.POLLIN)
            ready = {socket for socket, _ in poller.poll(to_poll_ms(deadline - time.monotonic()))}
            if not ready:
                raise zmq.Again
            for peer in [peer for peer in silent if sockets[peer] in ready]:
                if _is_hello(sockets[peer].recv(), peer, roster.token):
                    silent.discard(peer)
                    if peer > place.rank:
                        sockets[peer].send(hello)
    except zmq.Again:
        names = ", ".join(str(peer) for peer in sorted(silent))
        raise PeerTimeoutError(
            f"rank {place.rank} could not open a connection to rank{'s' if len(silent) > 1 else ''} {names} in time; "
            "see whether they still run, hold keys of one set, and whether the network between them lets TCP through",
            silent,
        ) from None


def _is_hello(frame: bytes, peer: int, token: int) -> bool:
    header = decode_header(frame)
    return header is not None and (header.token, header.sender, header.tag) == (token, peer, _HELLO)
