"""A transport that also takes notes: a digest of the codes that it sends, and when which message left and came.

    strategy ──message──► SentCodes ──► the transport itself
                             ├── digest of (request, layer, peer, payload), ...   so that two runs can be compared
                             └── Message, ...                                     arrows of a trace, see `timeline`

Codes are small; other payloads are not looked at, as hashing them would take time from what is measured. A note takes
less than a microsecond.
"""

import hashlib
import struct
import time
from collections.abc import Collection
from typing import NamedTuple

from astra.transport import Tag, Traffic, Transport, Watch

__all__ = ["Message", "SentCodes"]

PHASE = "codes"
DIGEST_BYTES = 8


class Message(NamedTuple):
    """One end of a message; the k-th sent with a tag from one rank to another is the k-th received there."""

    request: int
    layer: int
    phase: str
    peer: int
    """The rank at the other end."""
    at_ns: int
    """Reading of `time.perf_counter_ns` when it was handed to the transport, or by it."""
    received: bool


class SentCodes:
    """A rank's transport; what it does not listen to goes straight through."""

    def __init__(self, transport: Transport):
        self.messages: list[Message] = []
        """Sent and received so far, in order."""
        self._transport = transport
        self._digest: hashlib.blake2b | None = None

    def take_digest(self) -> str | None:
        """Return the digest of all codes since the last call; None if there were none."""
        taken, self._digest = self._digest, None
        return None if taken is None else taken.hexdigest()

    @property
    def rank(self) -> int:
        """See `Transport`."""
        return self._transport.rank

    @property
    def world_size(self) -> int:
        """See `Transport`."""
        return self._transport.world_size

    @property
    def traffic(self) -> Traffic:
        """See `Transport`."""
        return self._transport.traffic

    @property
    def watch(self) -> Watch:
        """See `Transport`."""
        return self._transport.watch

    def send(self, peer: int, tag: Tag, payload: bytes | bytearray | memoryview) -> None:
        """See `Transport`."""
        if tag.phase == PHASE:
            self._digest = self._digest or hashlib.blake2b(digest_size=DIGEST_BYTES)
            self._digest.update(struct.pack("<III", tag.request, tag.layer, peer))
            self._digest.update(payload)
        self._note(peer, tag, received=False)
        self._transport.send(peer, tag, payload)

    def receive(self, peer: int, tag: Tag, timeout_s: float) -> memoryview:
        """See `Transport`."""
        payload = self._transport.receive(peer, tag, timeout_s)
        self._note(peer, tag, received=True)
        return payload

    def receive_any(self, peers: Collection[int], tag: Tag, timeout_s: float) -> tuple[int, memoryview]:
        """See `Transport`."""
        peer, payload = self._transport.receive_any(peers, tag, timeout_s)
        self._note(peer, tag, received=True)
        return peer, payload

    def close(self, abort: bool = False) -> None:
        """See `Transport`."""
        self._transport.close(abort)

    def _note(self, peer: int, tag: Tag, *, received: bool) -> None:
        at_ns = time.perf_counter_ns()
        self.messages.append(Message(tag.request, tag.layer, tag.phase, peer, at_ns, received))
