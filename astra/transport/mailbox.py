"""What a rank has received and not yet asked for; shared by the transports that carry frames.

    frames of peers ──offer──► joined to messages ──take──► the caller

A peer may be a layer ahead: its messages wait here for their tag. A peer may be behind, or dead and its
frames late: what belongs to an earlier request than the one last asked for is dropped and counted as stale.
Frames that are not ours (another run's token, a header that is not one, a chunk out of turn or again) are dropped
and counted as malformed, and the first one is logged; nothing that arrives can raise, and no header makes this
rank take memory: a message has as much as has come of it. What a peer sends that was declared lost is stale too,
since others may not have got it.
"""

import logging
from collections import deque
from collections.abc import Collection

from astra.errors import TransportError
from astra.transport.framing import CHUNK_BYTES, HEADER_BYTES, Header, Tag, decode_header, num_frames
from astra.transport.watch import Watch

__all__ = ["Mailbox"]

_LOGGER = logging.getLogger(__name__)


class _Partial:
    """A message of which some frames are missing."""

    __slots__ = ("pieces", "tag", "total")

    def __init__(self, tag: Tag, total: int):
        self.tag = tag
        self.total = total
        self.pieces: list[memoryview] = []


class Mailbox:
    """Join frames to messages and keep them by tag, in order of arrival."""

    def __init__(self, rank: int, token: int, watch: Watch | None = None):
        self.stale = 0
        self.malformed = 0
        self._rank = rank
        self._token = token
        self._watch = watch or Watch()
        self._request = 0
        self._partial: dict[int, _Partial] = {}
        self._complete: dict[Tag, deque[tuple[int, memoryview]]] = {}

    def offer(self, peer: int, frame: bytes | memoryview) -> None:
        """Take one frame that arrived on the connection to `peer`; nobody may change it any more."""
        header = decode_header(frame)
        if header is None:
            self._reject(peer, "its header cannot be read")
        elif header.token != self._token or header.sender != peer:
            self._reject(peer, f"it is of another run or from rank {header.sender}")
        elif header.tag.request < self._request or peer in self._watch.gone:
            self._watch.note_received(peer)
            self.stale += 1
        else:
            self._watch.note_received(peer)
            self._join(peer, header, memoryview(frame)[HEADER_BYTES:])

    def _join(self, peer: int, header: Header, piece: memoryview) -> None:
        offset = header.chunk * CHUNK_BYTES
        if len(piece) != min(CHUNK_BYTES, header.total - offset):
            self._reject(peer, f"chunk {header.chunk} of {header.total} bytes cannot have {len(piece)}")
            return
        partial = self._partial.get(peer)
        if header.chunk == 0 and (partial is None or (partial.tag, partial.total) != (header.tag, header.total)):
            if partial is not None:
                self._reject(peer, "a message began before the last one was whole")
            partial = self._partial[peer] = _Partial(header.tag, header.total)
        if partial is None or (partial.tag, len(partial.pieces)) != (header.tag, header.chunk):
            self._reject(peer, f"chunk {header.chunk} of {header.tag} came out of turn")
            return
        if partial.total != header.total:
            self._reject(peer, f"{header.tag} changed its size on the way")
            return
        partial.pieces.append(piece)
        if len(partial.pieces) == num_frames(header.total):
            del self._partial[peer]
            message = (peer, memoryview(bytearray().join(partial.pieces)))
            self._complete.setdefault(header.tag, deque()).append(message)

    def _reject(self, peer: int, reason: str) -> None:
        if self.malformed == 0:
            _LOGGER.warning(
                "rank %d dropped a frame on the connection to rank %d: %s; more are counted but not logged",
                *(self._rank, peer, reason),
            )
        self.malformed += 1

    def begin(self, request: int) -> None:
        """Note that `request` is being served: whatever belongs to an earlier one is stale from now on.

        Raises:
            TransportError: a later request was asked for before.
        """
        if request == self._request:
            return
        if request < self._request:
            raise TransportError(
                f"rank {self._rank}: request must be {self._request} or later, got {request}; "
                "count requests upwards over the whole run"
            )
        self._request = request
        for tag in [tag for tag in self._complete if tag.request < request]:
            self.stale += sum(num_frames(len(payload)) for _, payload in self._complete.pop(tag))
        for peer in [peer for peer, partial in self._partial.items() if partial.tag.request < request]:
            self.stale += len(self._partial.pop(peer).pieces)

    def take(self, peers: Collection[int], tag: Tag) -> tuple[int, memoryview] | None:
        """Hand out the first message with this tag from one of the peers, if one is whole."""
        waiting = self._complete.get(tag)
        if waiting is None:
            return None
        for position, (peer, payload) in enumerate(waiting):
            if peer in peers:
                del waiting[position]
                if not waiting:
                    del self._complete[tag]
                return peer, payload
        return None
