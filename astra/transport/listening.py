"""A transport that also keeps a digest of the codes that it is given to send, so that two runs can be compared.

    strategy ──codes──► SentCodes ──► the transport itself
                           └── digest of (request, layer, peer, payload), ...

Codes are small; other payloads are not looked at, as hashing them would take time from what is measured.
"""

import hashlib
import struct
from collections.abc import Collection

from astra.transport import Tag, Traffic, Transport

__all__ = ["SentCodes"]

PHASE = "codes"
DIGEST_BYTES = 8


class SentCodes:
    """A rank's transport; what it does not listen to goes straight through."""

    def __init__(self, transport: Transport):
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

    def send(self, peer: int, tag: Tag, payload: bytes | bytearray | memoryview) -> None:
        """See `Transport`."""
        if tag.phase == PHASE:
            self._digest = self._digest or hashlib.blake2b(digest_size=DIGEST_BYTES)
            self._digest.update(struct.pack("<III", tag.request, tag.layer, peer))
            self._digest.update(payload)
        self._transport.send(peer, tag, payload)

    def receive(self, peer: int, tag: Tag, timeout_s: float) -> memoryview:
        """See `Transport`."""
        return self._transport.receive(peer, tag, timeout_s)

    def receive_any(self, peers: Collection[int], tag: Tag, timeout_s: float) -> tuple[int, memoryview]:
        """See `Transport`."""
        return self._transport.receive_any(peers, tag, timeout_s)

    def close(self, abort: bool = False) -> None:
        """See `Transport`."""
        self._transport.close(abort)
