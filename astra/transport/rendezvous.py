"""How the ranks find one another: rank 0 listens at MASTER_ADDR:MASTER_PORT, everybody else calls.

    rank r                          rank 0
      │── hello: world_size, r, address, ports ──►│   waits for all, refuses a wrong or a second rank r
      │◄── roster: token, addresses, ports ───────│
      │   (both sides open the pair connections, see `zeromq`)
      │── ready ──────────────────────────────────►│   waits for all
      │◄── go ─────────────────────────────────────│

With keys (see `curve`) only ranks of this run can call, each as itself, and one that is refused says so at once.
Whoever waits has a deadline and names those it waited for. When rank 0 gives up it says why to all that have called, so
every log names the same culprit. All of this crosses the data network, before anything is measured.
"""

import logging
import secrets
import socket
import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

import zmq

from astra.errors import PeerTimeoutError, TransportError
from astra.transport.curve import Gate, Handshakes, rank_of
from astra.transport.roster import Entry, Place, Roster, pack, read_entry, read_roster, unpack

__all__ = ["Entry", "Guest", "Host", "Place", "Rendezvous", "Roster", "own_address", "to_poll_ms"]

_LOGGER = logging.getLogger(__name__)

GRACE_S = 2.0
"""How much longer than rank 0 the others wait, so that they still hear why it gave up."""

MESSAGE_LIMIT_BYTES = 1 << 20
"""More than the roster of 256 ranks; whoever sends more is cut off."""

FAREWELL_MS = 2000
"""How long the last words of a rendezvous may stay queued after its socket is closed."""


def own_address(place: Place) -> str:
    """Find the address of this machine on its route to the master; sends nothing.

    Raises:
        TransportError: the name is unknown or there is no route.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((place.master_addr, place.master_port))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise TransportError(
            f"rank {place.rank}: MASTER_ADDR must be an IPv4 address or name that this machine has a route to, "
            f"got {place.master_addr!r} ({error}); set it to rank 0's data address"
        ) from error


def to_poll_ms(seconds: float) -> int:
    """Round a wait up to the milliseconds that ZeroMQ counts in, so that a rest of 0.4 ms is no busy loop."""
    return max(0, int(seconds * 1000) + 1) if seconds > 0 else 0


class Rendezvous(ABC):
    """One rank's part in the meeting; a context manager that leaves it."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], place: Place, timeout_s: float, *, kind: int, gate: Gate
    ):
        self._place = place
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._gate = gate
        self._socket = context.socket(kind)
        self._socket.linger = 0
        self._socket.maxmsgsize = MESSAGE_LIMIT_BYTES
        self._handshakes = Handshakes(self._socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handshakes.close()
        self._socket.close()

    @abstractmethod
    def exchange(self, entry: Entry) -> Roster:
        """Say where this rank is and learn where the others are.

        Raises:
            PeerTimeoutError: ranks did not show up; they are named.
            TransportError: ranks disagree about the world size, or two claim the same rank.
        """

    @abstractmethod
    def finish(self) -> None:
        """Return once every rank has got this far.

        Raises:
            PeerTimeoutError: as `exchange`.
        """


class Host(Rendezvous):
    """Rank 0's part."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], place: Place, timeout_s: float, gate: Gate):
        super().__init__(context, place, timeout_s, kind=zmq.ROUTER, gate=gate)
        self._socket.linger = FAREWELL_MS
        self._identities: dict[int, bytes] = {}
        self.dropped = 0
        """Messages that were not of a rendezvous, or of another rank than they said."""
        gate.serve(self._socket, range(1, place.world_size))
        endpoint = f"tcp://{own_address(place)}:{place.master_port}"
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._handshakes.close()
            self._socket.close()
            raise TransportError(
                f"rank 0: MASTER_PORT must be free on rank 0, got {place.master_port} ({error} at {endpoint}); "
                "stop what listens there or choose another"
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tell those that have called why rank 0 gives up, if it does."""
        if error is not None:
            self._tell_all("late" if isinstance(error, PeerTimeoutError) else "refuse", str(error))
        super().__exit__(kind, error, trace)

    def exchange(self, entry: Entry) -> Roster:
        """Collect every rank's entry, then give the roster to all."""
        entries = {0: entry}
        size = self._place.world_size
        while len(entries) < size:
            identity, caller, fields = self._receive(set(range(size)) - set(entries), "show up")
            match fields:
                case ["hello", int(world_size), int(rank), address, ports] if caller in (None, rank):
                    self._admit(identity, world_size, rank)
                    told = read_entry(address, ports, range(rank + 1, size))
                    if told is not None:
                        self._identities[rank], entries[rank] = identity, told
                        continue
            self._drop()
        roster = Roster(secrets.randbits(32), entries)
        self._tell_all("roster", roster.token, {rank: list(entry) for rank, entry in entries.items()})
        return roster

    def finish(self) -> None:
        """Wait until all are ready, then let all go."""
        waiting = {identity: rank for rank, identity in self._identities.items()}
        while waiting:
            identity, _, fields = self._receive(set(waiting.values()), "open their connections")
            if fields == ["ready"]:
                waiting.pop(identity, None)
            else:
                self._drop()
        self._tell_all("go")

    def _admit(self, identity: bytes, world_size: int, rank: int) -> None:
        expected = self._place.world_size
        fault = None
        if world_size != expected:
            fault = f"WORLD_SIZE must be {expected} as on rank 0, got {world_size} on rank {rank}"
        elif not 0 < rank < expected:
            fault = f"RANK must be 1 to {expected - 1} on all but rank 0, got {rank}"
        elif rank in self._identities:
            fault = f"RANK must be different on every device, got {rank} twice"
        if fault is not None:
            self._socket.send_multipart((identity, pack("refuse", fault)))
            raise TransportError(f"rendezvous at {self._place}: {fault}; start every rank once, with one WORLD_SIZE")

    def _drop(self) -> None:
        if self.dropped == 0:
            _LOGGER.warning(
                "rank 0 dropped a message at %s that is not of a rendezvous; more are counted but not logged",
                self._place,
            )
        self.dropped += 1

    def _receive(self, missing: set[int], what: str) -> tuple[bytes, int | None, list[Any]]:
        """Return a message with its connection, and the rank whose key that came with."""
        remaining_s = self._deadline - time.monotonic()
        if remaining_s <= 0 or not self._socket.poll(to_poll_ms(remaining_s)):
            names = ", ".join(str(rank) for rank in sorted(missing))
            raise PeerTimeoutError(
                f"rendezvous at {self._place}: rank 0 waited {self._timeout_s:g} s for rank"
                f"{'s' if len(missing) > 1 else ''} {names} to {what}; see whether they run and reach this address"
                f"{self._refusals()}",
                missing,
            )
        identity, *parts = self._socket.recv_multipart(copy=False)
        fields = unpack(parts[0].bytes) if len(parts) == 1 else []
        return identity.bytes, rank_of(parts[0]) if parts else None, fields

    def _refusals(self) -> str:
        """Say how many could not come in, if any."""
        self._handshakes.look()
        refused = max(self._handshakes.failed, self._gate.refused)
        return f" ({refused} that called had not the right keys)" if refused else ""

    def _tell_all(self, *fields: Any) -> None:
        for identity in self._identities.values():
            self._socket.send_multipart((identity, pack(*fields)))


class Guest(Rendezvous):
    """The part of every rank but 0."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], place: Place, timeout_s: float, gate: Gate):
        super().__init__(context, place, timeout_s + GRACE_S, kind=zmq.DEALER, gate=gate)
        gate.call(self._socket, 0)
        self._socket.connect(f"tcp://{place.master_addr}:{place.master_port}")

    def exchange(self, entry: Entry) -> Roster:
        """Call rank 0 and wait for its roster."""
        self._socket.send(pack("hello", self._place.world_size, self._place.rank, *entry))
        match self._receive():
            case ["roster", int(token), dict(told)] if roster := read_roster(token, told, self._place.world_size):
                return roster
            case other:
                raise self._unexpected(other)

    def finish(self) -> None:
        """Say that this rank is ready and wait for the others."""
        self._socket.send(pack("ready"))
        answer = self._receive()
        if answer != ["go"]:
            raise self._unexpected(answer)

    def _receive(self) -> list[Any]:
        self._await_news()
        if not self._socket.poll(0):
            raise PeerTimeoutError(
                f"rank {self._place.rank} waited {self._timeout_s:g} s for rank 0 at {self._place}; "
                "see whether it runs and whether MASTER_ADDR and MASTER_PORT are the same on all"
            )
        fields = unpack(self._socket.recv())
        match fields:
            case ["refuse", str(fault)]:
                raise TransportError(f"rank {self._place.rank} was turned away by rank 0 at {self._place}: {fault}")
            case ["late", str(fault)]:
                raise PeerTimeoutError(f"rank {self._place.rank} heard from rank 0: {fault}")
        return fields

    def _await_news(self) -> None:
        """Wait for a message until the deadline. Raises TransportError once rank 0 is seen to refuse this rank."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._handshakes.monitor, zmq.POLLIN)
        while self._socket not in dict(ready := poller.poll(to_poll_ms(self._deadline - time.monotonic()))):
            if not ready:
                return
            self._handshakes.look()
            if self._handshakes.hopeless:
                raise TransportError(
                    f"rank {self._place.rank}: keys must be of one set on all ranks, got a refusal from rank 0 at "
                    f"{self._place}; give every rank its file of the same `astra keys`, or none any (CURVE_KEYS)"
                )

    def _unexpected(self, fields: list[Any]) -> TransportError:
        return TransportError(
            f"rank {self._place.rank}: rank 0 at {self._place} must answer with a roster, got {fields!r}; "
            "see whether another program or version listens there"
        )
