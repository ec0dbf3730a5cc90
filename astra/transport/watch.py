"""What a transport does just now, written by its thread and read by another; and whether it should stop waiting.

    serving thread ── waiting, frames sent and received, heard ──► control thread
                   ◄── gone, alarm ───────────────────────────────

Every field is replaced as a whole or only ever counted up, so that neither thread needs a lock. Costs the serving
thread some assignments a message.
"""

import time
from collections.abc import Collection
from typing import NamedTuple

from astra.errors import TransportError
from astra.transport.framing import Tag

__all__ = ["PeerGoneError", "Waiting", "Watch"]

VERDICT_POLL_S = 0.02
"""How often a thread that could not send looks for the verdict."""


class PeerGoneError(TransportError):
    """What is waited for will not come: its sender was declared lost, and the others do without."""


class Waiting(NamedTuple):
    """Whom a rank waits for, and for what."""

    peers: tuple[int, ...]
    tag: Tag
    since_s: float
    """On the clock of `time.monotonic`."""


class Watch:
    """One transport's notes."""

    def __init__(self) -> None:
        self.waiting: Waiting | None = None
        self.frames_sent: dict[int, int] = {}
        self.frames_received: dict[int, int] = {}
        self.heard_s: dict[int, float] = {}
        """When the last frame of each peer was taken in, on the clock of `time.monotonic`."""
        self.gone: frozenset[int] = frozenset()
        """Peers that are done without: nothing is sent to them, and nothing taken from them."""
        self.alarm: TransportError | None = None
        """Raised, as a copy, by whatever waits from now on."""
        self.verdict_s = 0.0
        """How long to wait for news of a peer to whom nothing can be sent; 0 where nobody would bring them."""

    def note_received(self, peer: int) -> None:
        """Count a frame."""
        self.frames_received[peer] = self.frames_received.get(peer, 0) + 1
        self.heard_s[peer] = time.monotonic()

    def note_sent(self, peer: int) -> None:
        """Count a frame."""
        self.frames_sent[peer] = self.frames_sent.get(peer, 0) + 1

    def check(self, peers: Collection[int]) -> None:
        """Raise the alarm if there is one, or PeerGoneError if one of the peers that are waited for is gone."""
        if self.alarm is not None:
            raise type(self.alarm)(str(self.alarm))
        if self.gone and (lost := sorted(self.gone.intersection(peers))):
            raise PeerGoneError(f"rank {lost[0]} is lost, and nobody can do without what it was to send")

    def is_done_without(self, peer: int) -> bool:
        """Wait for what is decided about a peer to whom nothing can be sent; return whether it is done without.

        Raises the alarm, if that is what is decided.
        """
        deadline_s = time.monotonic() + self.verdict_s
        while True:
            self.check(())
            if peer in self.gone:
                return True
            if time.monotonic() >= deadline_s:
                return False
            time.sleep(VERDICT_POLL_S)
