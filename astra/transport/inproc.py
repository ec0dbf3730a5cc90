"""Ranks as threads of one process, for tests and for trying a strategy without a network.

The frames are the same as on a real network, so everything but the sockets is exercised.
"""

import secrets
import threading
from collections import deque
from collections.abc import Collection

from astra.errors import TransportError
from astra.transport.framed import FramedTransport
from astra.transport.framing import Frame, Tag

__all__ = ["InprocTransport", "connect"]


class _Inbox:
    """Frames on their way to one rank."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.frames: deque[tuple[int, bytes]] = deque()
        self.open = True


class InprocTransport(FramedTransport):
    """A `Transport` between threads; made by `connect`, one for each thread."""

    def __init__(self, rank: int, token: int, inboxes: tuple[_Inbox, ...]):
        super().__init__(rank, len(inboxes), token)
        self._inboxes = inboxes

    def _push(self, peer: int, tag: Tag, frame: Frame) -> None:
        inbox = self._inboxes[peer]
        with inbox.changed:
            if not inbox.open:
                raise TransportError(f"rank {self.rank}: rank {peer} has closed its transport; send nothing more")
            inbox.frames.append((self.rank, b"".join(frame)))
            inbox.changed.notify()

    def _pull(self, peers: Collection[int], timeout_s: float) -> bool:
        inbox = self._inboxes[self.rank]
        with inbox.changed:
            if not inbox.changed.wait_for(lambda: len(inbox.frames) > 0, timeout_s):
                return False
            arrived = list(inbox.frames)
            inbox.frames.clear()
        for peer, frame in arrived:
            self._mailbox.offer(peer, frame)
        return True

    def _release(self, abort: bool) -> None:
        inbox = self._inboxes[self.rank]
        with inbox.changed:
            inbox.open = False
            inbox.frames.clear()


def connect(world_size: int) -> list[InprocTransport]:
    """Make the transports of all ranks, in order."""
    assert world_size >= 1
    inboxes = tuple(_Inbox() for _ in range(world_size))
    token = secrets.randbits(32)
    return [InprocTransport(rank, token, inboxes) for rank in range(world_size)]
