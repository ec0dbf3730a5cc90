"""The half of a transport that does not depend on its network: cutting, counting, keeping, deadlines.

A network supplies three moves: push one frame to a peer, wait for frames and offer them to the mailbox, let
go. Whoever waits looks now and then whether its `watch` still wants it to.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from astra.errors import PeerLostError, PeerTimeoutError, TransportError
from astra.transport import Traffic
from astra.transport.framing import Frame, Tag, cut
from astra.transport.mailbox import Mailbox
from astra.transport.watch import Waiting, Watch

__all__ = ["FramedTransport"]

LOOK_EVERY_S = 0.05
"""Longest wait for frames before a look at the watch."""


class FramedTransport(ABC):
    """A `Transport` over anything that carries frames in order between two ranks."""

    def __init__(self, rank: int, world_size: int, token: int):
        self.rank = rank
        self.world_size = world_size
        self._token = token
        self.watch = Watch()
        self._mailbox = Mailbox(rank, token, self.watch)
        self._payload_bytes_sent = 0
        self._frames_sent = 0
        self._messages_sent = 0
        self._closed = False

    @property
    def traffic(self) -> Traffic:
        """The counters as they stand now."""
        return Traffic(
            payload_bytes_sent=self._payload_bytes_sent,
            frames_sent=self._frames_sent,
            messages_sent=self._messages_sent,
            stale=self._mailbox.stale,
            malformed=self._mailbox.malformed,
        )

    def send(self, peer: int, tag: Tag, payload: bytes | bytearray | memoryview) -> None:
        """Queue a message; see `Transport.send`."""
        self._check_open()
        self._check_peer(peer)
        if peer in self.watch.gone:
            return
        for frame in cut(self._token, self.rank, tag, payload):
            try:
                self._push(peer, tag, frame)
            except TransportError:
                if self._is_done_without(peer, tag):
                    return
                raise
            self.watch.note_sent(peer)
            self._frames_sent += 1
            self._payload_bytes_sent += len(frame[1])
        self._messages_sent += 1

    def receive(self, peer: int, tag: Tag, timeout_s: float) -> memoryview:
        """Wait for one peer's message; see `Transport.receive`."""
        return self.receive_any((peer,), tag, timeout_s)[1]

    def receive_any(self, peers: Collection[int], tag: Tag, timeout_s: float) -> tuple[int, memoryview]:
        """Wait for the first message of several peers; see `Transport.receive_any`."""
        self._check_open()
        for peer in peers:
            self._check_peer(peer)
        self._mailbox.begin(tag.request)
        message = self._mailbox.take(peers, tag)
        if message is not None:
            return message
        self.watch.waiting = Waiting(tuple(peers), tag, time.monotonic())
        try:
            return self._await(peers, tag, timeout_s)
        finally:
            self.watch.waiting = None

    def _await(self, peers: Collection[int], tag: Tag, timeout_s: float) -> tuple[int, memoryview]:
        deadline = time.monotonic() + timeout_s
        while True:
            self._check_watch(peers, tag)
            remaining_s = deadline - time.monotonic()
            self._pull(peers, min(max(0.0, remaining_s), LOOK_EVERY_S))
            message = self._mailbox.take(peers, tag)
            if message is not None:
                return message
            if remaining_s <= 0:
                raise PeerTimeoutError(self._describe_wait(peers, tag, timeout_s))

    def _check_watch(self, peers: Collection[int], tag: Tag) -> None:
        """Let the watch interrupt."""
        with self._saying_what_for(peers, tag):
            self.watch.check(peers)

    def _is_done_without(self, peer: int, tag: Tag) -> bool:
        """Wait for what is decided about a peer to whom this message could not be sent."""
        self.watch.waiting = Waiting((peer,), tag, time.monotonic())
        try:
            with self._saying_what_for((peer,), tag):
                return self.watch.is_done_without(peer)
        finally:
            self.watch.waiting = None

    @contextmanager
    def _saying_what_for(self, peers: Collection[int], tag: Tag) -> Iterator[None]:
        """Say in the news of a loss what this rank waited for, if it was too slow to wait for others to know."""
        try:
            yield
        except PeerLostError as lost:
            wait = f"rank {self.rank} waited for rank"
            if wait in str(lost):
                raise
            names = f"{'s' if len(peers) > 1 else ''} {', '.join(map(str, sorted(peers)))}"
            raise PeerLostError(
                f"{lost}; {wait}{names}: request {tag.request}, layer {tag.layer}, phase {tag.phase!r}"
            ) from lost

    def _describe_wait(self, peers: Collection[int], tag: Tag, timeout_s: float) -> str:
        names = ", ".join(str(peer) for peer in sorted(peers))
        return (
            f"rank {self.rank} waited {timeout_s:g} s for rank{'s' if len(peers) > 1 else ''} {names}: "
            f"request {tag.request}, layer {tag.layer}, phase {tag.phase!r} did not arrive; "
            "look at their logs, or raise timeout_s if the link is merely slow"
        )

    def close(self, abort: bool = False) -> None:
        """Let go of the network once; see `Transport.close`."""
        if not self._closed:
            self._closed = True
            self._release(abort)

    def _check_open(self) -> None:
        if self._closed:
            raise TransportError(f"rank {self.rank}: the transport is closed; connect again")

    def _check_peer(self, peer: int) -> None:
        if not 0 <= peer < self.world_size or peer == self.rank:
            raise TransportError(
                f"rank {self.rank}: peer must be another rank below {self.world_size}, got {peer!r}; "
                "ranks are numbered from 0"
            )

    @abstractmethod
    def _push(self, peer: int, tag: Tag, frame: Frame) -> None:
        """Queue a copy of one frame; raise TransportError naming the peer if that cannot be done."""

    @abstractmethod
    def _pull(self, peers: Collection[int], timeout_s: float) -> bool:
        """Wait for frames of these peers and offer them to the mailbox; False if none came in time."""

    @abstractmethod
    def _release(self, abort: bool) -> None:
        """Free what `__init__` took; called once."""
