"""The end of every rank but 0: reports, obeys, and notices when rank 0 has gone.

Presence ──report──► DEALER ──► rank 0          a thread of its own, ten times a second
watch    ◄──gone, alarm── DEALER ◄── rank 0
"""

import contextlib
import logging
import threading
import time
from types import TracebackType
from typing import Self

import zmq

from astra.control.plane import BEAT_S, Forgives, Limits, Position
from astra.control.presence import Presence
from astra.control.words import MESSAGE_LIMIT_BYTES, Epoch, Word, pack, unpack_word
from astra.errors import PeerLostError, PeerTimeoutError, RecallError
from astra.transport.curve import Gate
from astra.transport.watch import Watch

__all__ = ["Guest"]

_LOGGER = logging.getLogger(__name__)

SILENT_SHARE = 0.9
"""Of `detect_s`, after which a silent rank 0 is lost, once it has loaded."""
FAREWELL_MS = 500
WAITING_REPORTS = 10
"""Reports that wait for a connection. With IMMEDIATE=1 none would, but a closing rank 0 would take its last words with
it: see `transport.zeromq`."""
LONGEST_LOOP_S = 2 * BEAT_S
"""A thread that was not run for longer does not hold it against rank 0."""


class Guest:
    """A `Control`."""

    def __init__(
        self, presence: Presence, endpoint: str, limits: Limits, *, context: zmq.Context[zmq.Socket[bytes]], gate: Gate
    ):
        self._presence, self._endpoint, self._limits = presence, endpoint, limits
        self._context, self._gate = context, gate
        self._socket = context.socket(zmq.DEALER)
        self._socket.sndhwm = WAITING_REPORTS
        self._socket.linger = FAREWELL_MS
        self._socket.maxmsgsize = MESSAGE_LIMIT_BYTES
        self._socket.identity = f"{presence.rank}-{presence.life}".encode()
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        gate.call(self._socket, 0)
        self._socket.connect(endpoint)
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._epoch: Epoch | None = None
        self._failure: PeerLostError | None = None
        self._ended = self._heard = False
        self._silent_s = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._heard:
            farewell = pack("bye") if error is None or self._failure else pack("failed", str(error)[:1000])
            self._send(farewell)
        self._socket.disable_monitor()
        self._gate.close()
        self._context.destroy(linger=FAREWELL_MS)

    def first_epoch(self) -> Epoch | None:
        """Report to rank 0 and wait for its word; see `Control`."""
        deadline_s = time.monotonic() + self._limits.timeout_s
        self._presence.free()
        with self._changed:
            while not self._heard and not self._changed.wait(BEAT_S):
                if time.monotonic() > deadline_s:
                    raise PeerTimeoutError(
                        f"rank {self._presence.rank} waited {self._limits.timeout_s:g} s for rank 0 at "
                        f"{self._endpoint}; see whether it runs, and whether MASTER_ADDR and MASTER_PORT are the same "
                        "on all"
                    )
        return self._await_epoch()

    def next_epoch(self, position: Position) -> Epoch | None:
        """Wait for rank 0's word, which knows where to go on; see `Control`."""
        self._presence.free()
        return self._await_epoch()

    def begin(self, epoch: Epoch, watch: Watch) -> None:
        """Let losses show in `watch`."""
        self._presence.begin(watch, 2 * self._limits.detect_s)

    def serving(self, forgives: Forgives | None) -> None:
        """Rank 0 decides."""

    someone_waits = False

    def meeting_failed(self, error: Exception) -> None:
        """Wait for the next epoch."""

    @property
    def gone(self) -> frozenset[int]:
        """Ranks of the epoch that are done without."""
        return self._presence.gone

    def _await_epoch(self) -> Epoch | None:
        with self._changed:
            while True:
                if self._failure is not None:
                    raise PeerLostError(str(self._failure))
                if self._ended:
                    return None
                epoch = self._epoch
                if epoch is not None and epoch.number > self._presence.epoch:
                    self._presence.take(epoch)
                    return epoch
                self._changed.wait()

    # The thread

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        next_s = looked_s = time.monotonic()
        while not self._stop.is_set():
            ready = dict(poller.poll(max(1, int((next_s - time.monotonic()) * 1000))))
            now_s = time.monotonic()
            self._silent_s += min(now_s - looked_s, LONGEST_LOOP_S)
            looked_s = now_s
            if self._socket in ready:
                self._obey()
            if self._monitor in ready:
                self._monitor.recv_multipart()
                self._obey()  # its last words came before its end
                if self._heard:
                    self._lose("its connection broke")
            elif self._epoch is not None and self._silent_s > SILENT_SHARE * self._limits.detect_s:
                self._lose(f"it has been silent for {self._silent_s:.1f} s")
            if now_s >= next_s:
                next_s = max(next_s + BEAT_S, now_s)
                self._send(pack("report", *self._presence.report()))

    def _obey(self) -> None:
        while True:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            word = unpack_word(frame)
            if word is not None:
                self._silent_s = 0.0
                with self._changed:
                    self._heard = True
                    self._take(word)
                    self._changed.notify_all()

    def _take(self, word: Word) -> None:
        match word.kind:
            case "epoch" if word.epoch is not None and self._presence.rank in word.epoch.members:
                self._epoch = word.epoch
            case "gone":
                _LOGGER.warning("%s; going on without", word.why)
                self._presence.leave_out(word.ranks)
            case "recall":
                self._presence.alarm(RecallError(word.why))
            case "fail" if not self._ended and self._failure is None:
                self._failure = PeerLostError(word.why)
                self._presence.alarm(self._failure)
            case "end":
                self._ended = True

    def _lose(self, why: str) -> None:
        with self._changed:
            if not self._ended and self._failure is None:
                report = self._presence.report()
                wait = f"; rank {report.rank} waited for {report.doing}" if report.doing else ""
                self._failure = PeerLostError(f"rank 0 is lost: {why}; nobody asks any more{wait}")
                self._presence.alarm(self._failure)
            self._changed.notify_all()

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(zmq.Again):  # not connected yet, or no more
            self._socket.send(message, zmq.NOBLOCK)
