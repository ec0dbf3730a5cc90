"""Messages between ranks: one contract, several networks.

    send(peer, tag, payload) ─► frames of up to 64 KiB ─► network ─► mailbox ─► receive(peer, tag, timeout_s)

Sending queues and never waits for the network. Receiving waits for a tag; messages for other tags are kept
until somebody asks for them, in whatever order they arrive. `inproc` joins threads of one process, `zeromq`
joins processes over TCP; the same tests hold for both. A transport belongs to one thread.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from astra.transport.framing import (
    CHUNK_BYTES,
    HEADER_BYTES,
    MAX_MESSAGE_BYTES,
    Tag,
    framed_size,
    num_frames,
)
from astra.transport.watch import PeerGoneError, Watch

__all__ = [
    "CHUNK_BYTES",
    "HEADER_BYTES",
    "MAX_MESSAGE_BYTES",
    "PeerGoneError",
    "Tag",
    "Traffic",
    "Transport",
    "Watch",
    "framed_size",
    "num_frames",
]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one rank has sent so far, and what it received and threw away; differences give a request's share.

    `payload_bytes_sent` counts what the callers asked to send, without headers. `stale` counts frames of
    requests that were over, `malformed` frames that were not for this run or could not be read.
    """

    payload_bytes_sent: int
    frames_sent: int
    messages_sent: int
    stale: int
    malformed: int


class Transport(Protocol):
    """Messages between this rank and each of the others."""

    @property
    def rank(self) -> int:
        """Which rank this is, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """How many ranks there are, this one included."""
        ...

    @property
    def traffic(self) -> Traffic:
        """The counters as they stand now; a snapshot."""
        ...

    @property
    def watch(self) -> Watch:
        """What it does just now, for another thread, which may interrupt it there."""
        ...

    def send(self, peer: int, tag: Tag, payload: bytes | bytearray | memoryview) -> None:
        """Queue a message; the payload may be changed as soon as this returns.

        Raises:
            TransportError: there is no connection to the peer, or the transport is closed.
            PeerLostError, RecallError: the control plane has raised its alarm.
        """
        ...

    def receive(self, peer: int, tag: Tag, timeout_s: float) -> memoryview:
        """Wait for the peer's message with this tag; the memory is the caller's and may be written to.

        Raises:
            PeerTimeoutError: it did not arrive within `timeout_s` seconds.
            PeerGoneError: the peer is done without.
            PeerLostError, RecallError: as `send`.
        """
        ...

    def receive_any(self, peers: Collection[int], tag: Tag, timeout_s: float) -> tuple[int, memoryview]:
        """Wait for the first message with this tag from any of the peers; say whose it is.

        Raises:
            PeerTimeoutError: none arrived within `timeout_s` seconds.
            PeerGoneError: one of the peers is done without, and the message of none is here.
            PeerLostError, RecallError: as `send`.
        """
        ...

    def close(self, abort: bool = False) -> None:
        """Let go of the network, after queued messages have left unless `abort`; may be called again."""
        ...
