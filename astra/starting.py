"""The word with which rank 0 begins a request, and the one with which its peers end it.

    rank 0     say ──► message, and where rows may be lost also datagrams ──► hear     peers
               forward ◄──────────────────── strategy ─────────────────────► forward
                                                                      settle: take in the message

A rank that begins late sends everything late, which datagrams do not forgive: so the word has more than one way there.
"""

from dataclasses import dataclass

from astra.collectives import Collectives
from astra.transport import Tag

__all__ = ["StartWord"]


@dataclass
class StartWord:
    """One request's word."""

    collectives: Collectives
    tag: Tag
    copies: int
    """How many datagrams it travels as besides; 0 where the strategy has none."""
    _is_due: bool = False

    def say(self) -> None:
        """Tell all peers, on rank 0."""
        if self.copies:
            self.collectives.call(self.tag, self.copies)
        else:
            self.collectives.broadcast(self.tag, b"")

    def hear(self) -> None:
        """Wait for it, on the others.

        Raises:
            PeerTimeoutError: It did not come.
        """
        if self.copies:
            self._is_due = self.collectives.await_call(self.tag)
        else:
            self.collectives.broadcast(self.tag, None)

    def settle(self) -> None:
        """Take in the message of a word that came as a datagram, when there is time."""
        if self._is_due:
            self.collectives.broadcast(self.tag, None)
            self._is_due = False
