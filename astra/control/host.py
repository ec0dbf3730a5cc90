"""Rank 0's end: hears everybody, decides who is lost and what comes of it, and begins epochs.

reports ──ROUTER──► Known ──Judge──► Lost ──policy──► fail | gone | recall, to all    a thread of its own
serving thread ── first_epoch, next_epoch ──► waits until all are free ──► epoch, to all
"""

import logging
import socket as sockets
import threading
import time
from collections import deque
from collections.abc import Collection
from types import TracebackType
from typing import Self

import zmq

from astra.control.judge import Judge, Known, Lost, describe
from astra.control.plane import BEAT_S, Forgives, Limits, Position
from astra.control.presence import Presence
from astra.control.words import MESSAGE_LIMIT_BYTES, Epoch, Report, pack, unpack_report
from astra.errors import PeerLostError, PeerTimeoutError, RecallError, TransportError
from astra.transport.curve import Gate, rank_of
from astra.transport.watch import Watch

__all__ = ["Host"]

_LOGGER = logging.getLogger(__name__)

TICK_S = 0.05
FAREWELL_MS = 500
LONGEST_LOOP_S = 2 * BEAT_S
"""Time that counts as others' silence, of a loop that took longer since this process was not run."""


class Host:
    """A `Control`."""

    def __init__(
        self,
        presence: Presence,
        world_size: int,
        endpoint: str,
        limits: Limits,
        *,
        address: str,
        context: zmq.Context[zmq.Socket[bytes]],
        gate: Gate,
    ):
        self._presence, self._world_size, self._endpoint = presence, world_size, endpoint
        self._limits, self._address = limits, address
        self._context, self._gate = context, gate
        self._judge = Judge(limits.detect_s)
        self._socket = context.socket(zmq.ROUTER)
        self._socket.router_mandatory = 1
        self._socket.linger = FAREWELL_MS
        self._socket.maxmsgsize = MESSAGE_LIMIT_BYTES
        gate.serve(self._socket, range(1, world_size))
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            gate.close()
            context.destroy(linger=0)
            raise TransportError(
                f"rank 0: control endpoint must be free on rank 0, got {endpoint} ({error}); stop what listens there, "
                "or choose another MASTER_PORT or CONTROL_ENDPOINT"
            ) from error
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._outbox: deque[tuple[int | None, bytes]] = deque()
        self._clock_s = 0.0
        self._known: dict[int, Known] = {}
        self._connections: dict[int, bytes] = {}
        self._barred: set[str] = set()
        """Lives that may not join again."""
        self._epoch: Epoch | None = None
        self._before: tuple[int, ...] = ()
        self._lost: set[int] = set()
        """Members of the epoch that are."""
        self._recalled = False
        self._forgives: Forgives | None = None
        self._failure: TransportError | None = None
        self.dropped = 0
        """Messages that could not be read."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._tell_all("end") if error is None else self._tell_all("fail", f"rank 0 failed: {error}"[:4000])
        self._flush()
        self._gate.close()
        self._context.destroy(linger=FAREWELL_MS)

    # The serving thread

    def first_epoch(self) -> Epoch | None:
        """Wait for all ranks; see `Control`."""
        self._presence.free()
        with self._changed:
            self._await_free(range(1, self._world_size), "show up")
            return self._form(range(self._world_size), Position(0, 0, 0))

    def next_epoch(self, position: Position) -> Epoch | None:
        """Wait for those that are left, and take in those that are back; see `Control`."""
        assert self._epoch is not None, "the first epoch comes first"
        with self._changed:
            self._presence.free()
            self._recall("ranks meet again")
            self._await_free(self._epoch.members[1:], "stop what they do")
            ready = [rank for rank in self._known if self._is_free(rank) and not self._is_barred(rank)]
            return self._form([0, *sorted(ready)], position)

    def begin(self, epoch: Epoch, watch: Watch) -> None:
        """Let losses show in `watch`."""
        self._presence.begin(watch, 2 * self._limits.detect_s)

    def serving(self, forgives: Forgives | None) -> None:
        """Say what may be lost from now on; see `Control`."""
        with self._changed:
            self._forgives = forgives
            if self._presence.gone and (forgives is None or not forgives(self._presence.gone)):
                raise RecallError(f"what comes next cannot do without ranks {sorted(self._lost)}")

    @property
    def someone_waits(self) -> bool:
        """Whether a rank is back that could join."""
        with self._changed:
            members = () if self._epoch is None else set(self._epoch.members) - self._lost
            return any(
                rank not in members and self._is_free(rank) and not self._is_barred(rank) for rank in self._known
            )

    def meeting_failed(self, error: Exception) -> None:
        """Leave out who could not be reached, or else whoever is new; raise the error if that is nobody.

        Those left out may be well, and cut off only on the network of the data: they may return as another life.
        """
        with self._changed:
            assert self._epoch is not None
            members = self._epoch.members
            silent = {members[place] for place in error.silent} if isinstance(error, PeerTimeoutError) else set()
            left_out = silent or {rank for rank in members[1:] if rank not in self._before}
            if not left_out and not self._lost:
                raise error
            self._lost |= silent
            self._barred |= {self._known[rank].report.life for rank in left_out if rank in self._known}

    @property
    def gone(self) -> frozenset[int]:
        """Ranks of the epoch that are done without."""
        return self._presence.gone

    def _await_free(self, ranks: Collection[int], what: str) -> None:
        deadline_s = time.monotonic() + self._limits.timeout_s
        while True:
            if self._failure is not None:
                raise type(self._failure)(str(self._failure))
            missing = [rank for rank in ranks if rank not in self._lost and not self._is_free(rank)]
            if not missing:
                return
            if time.monotonic() > deadline_s:
                names = ", ".join(map(str, missing))
                raise PeerTimeoutError(
                    f"rendezvous at {self._endpoint}: rank 0 waited {self._limits.timeout_s:g} s for rank"
                    f"{'s' if len(missing) > 1 else ''} {names} to {what}; see whether they run and reach this address"
                )
            self._changed.wait(TICK_S)

    def _form(self, members: Collection[int], position: Position) -> Epoch:
        self._before = () if self._epoch is None else self._epoch.members
        reports = {rank: self._known[rank].report for rank in members if rank}
        addresses = tuple(reports[rank].address if rank else self._address for rank in members)
        number = 0 if self._epoch is None else self._epoch.number + 1
        self._epoch = Epoch(number, tuple(members), addresses, _free_port(self._address), *position)
        self._lost, self._recalled, self._forgives = set(), False, None
        self._judge = Judge(self._limits.detect_s)
        for rank in members:
            if rank in self._known:
                self._known[rank].heard_s = self._clock_s
        self._presence.take(self._epoch)
        self._tell_all("epoch", *self._epoch)
        return self._epoch

    def _is_free(self, rank: int) -> bool:
        known = self._known.get(rank)
        if known is None or known.broken_s is not None or known.report.state != "free":
            return False
        is_member = self._epoch is not None and rank in self._epoch.members and rank not in self._lost
        return not is_member or known.report.epoch == self._presence.epoch

    def _is_barred(self, rank: int) -> bool:
        silent_s = self._clock_s - self._known[rank].heard_s
        return self._known[rank].report.life in self._barred or silent_s > self._limits.detect_s / 2

    # The thread

    def _run(self) -> None:
        next_s = looked_s = time.monotonic()
        while not self._stop.is_set():
            self._socket.poll(int(TICK_S * 1000))
            with self._changed:
                now_s = time.monotonic()
                self._clock_s += min(now_s - looked_s, LONGEST_LOOP_S)
                looked_s = now_s
                self._hear()
                if now_s >= next_s:
                    next_s = max(next_s + BEAT_S, now_s)
                    self._tell_all("beat")
                    self._recall_the_lost()
                self._decide(self._find_lost())
                self._flush()
                self._changed.notify_all()

    def _hear(self) -> None:
        while True:
            try:
                connection, frame = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            except ValueError:
                self.dropped += 1
                continue
            said, caller = unpack_report(frame.bytes), rank_of(frame)
            if isinstance(said, Report) and 0 < said.rank < self._world_size and caller in (None, said.rank):
                self._note(said, connection.bytes)
            elif isinstance(said, str):
                self._part(said, connection.bytes)
            else:
                self.dropped += 1

    def _note(self, report: Report, connection: bytes) -> None:
        known = self._known.get(report.rank)
        if known is not None and known.report.life == report.life:
            known.report, known.heard_s = report, self._clock_s
            return
        if known is not None and self._epoch is not None and report.rank in self._epoch.members:
            self._decide([Lost(report.rank, "it was started again", may_return=True)])
        self._known[report.rank] = Known(report, self._clock_s)
        self._connections[report.rank] = connection

    def _part(self, why: str, connection: bytes) -> None:
        """Take a farewell."""
        for rank, own in list(self._connections.items()):
            if own == connection and not why:
                self._known.pop(rank, None)
                self._connections.pop(rank)
            elif own == connection and rank in self._known:
                self._known[rank].broken_s, self._known[rank].why = self._clock_s, f"it failed: {why}"

    def _find_lost(self) -> list[Lost]:
        if self._epoch is None:
            return self._judge.lost(self._known, list(self._known), self._clock_s)
        members = set(self._epoch.members) - self._lost
        reports = {**self._known, 0: Known(self._presence.report(), self._clock_s)}
        return self._judge.lost(reports, members, self._clock_s)

    def _decide(self, found: Collection[Lost]) -> None:
        fresh = [one for one in found if one.rank not in self._lost]
        if not fresh or self._failure is not None:
            return
        reports = {rank: known.report for rank, known in self._known.items()}
        why = describe(fresh, {0: self._presence.report(), **reports})
        self._lost |= {one.rank for one in fresh}
        self._barred |= {reports[one.rank].life for one in fresh if not one.may_return and one.rank in reports}
        if self._epoch is None or self._limits.policy == "fail" or (self._forgives is None and not self._recalled):
            self._failure = PeerLostError(why)
            self._presence.alarm(self._failure)
            self._tell_all("fail", why)
        elif not self._recalled and self._forgives is not None and self._forgives(self._places(self._lost)):
            _LOGGER.warning("%s; going on without", why)
            self._presence.leave_out(self._lost)
            self._tell_all("gone", sorted(self._lost), why)
        else:
            _LOGGER.warning("%s; asking again without", why)
            self._recall(why)

    def _places(self, ranks: Collection[int]) -> frozenset[int]:
        assert self._epoch is not None, "there are ranks to lose"
        return frozenset(self._epoch.place_of(rank) for rank in ranks)

    def _recall(self, why: str) -> None:
        if not self._recalled:
            self._recalled = True
            self._presence.alarm(RecallError(why))
            self._tell_all("recall", why)

    def _recall_the_lost(self) -> None:
        """Tell those that were lost and are heard again that the others went on."""
        members = set() if self._epoch is None else set(self._epoch.members) - self._lost
        for rank, known in self._known.items():
            if rank not in members and known.report.state == "serving":
                self._outbox.append((rank, pack("recall", f"rank {rank} was left out, since it was not heard")))

    def _tell_all(self, *fields: object) -> None:
        self._outbox.append((None, pack(*fields)))

    def _flush(self) -> None:
        while self._outbox:
            to, message = self._outbox.popleft()
            for rank, connection in list(self._connections.items()):
                if to in (None, rank):
                    self._send(rank, connection, message)

    def _send(self, rank: int, connection: bytes, message: bytes) -> None:
        try:
            self._socket.send_multipart((connection, message), zmq.NOBLOCK)
        except zmq.Again:
            pass  # it does not read: it stands still
        except zmq.ZMQError:  # EHOSTUNREACH
            if rank in self._known and self._known[rank].broken_s is None:
                self._known[rank].broken_s = self._clock_s


def _free_port(address: str) -> int:
    with sockets.socket(sockets.AF_INET, sockets.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
