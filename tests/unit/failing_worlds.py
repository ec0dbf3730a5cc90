"""Ranks as threads over loopback, one of which is killed, cut off or left standing at a chosen message."""

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transport_worlds import free_port
from worker_worlds import Notebook, Recorder

from astra.config import BenchConfig
from astra.control import Control, Limits
from astra.control.guest import Guest
from astra.control.opening import open_control
from astra.environment import Environment
from astra.errors import TransportError
from astra.reporting import Row
from astra.transport import Tag, Transport, zeromq
from astra.worker import run_rank


class Killed(BaseException):
    """What a rank's thread gets instead of SIGKILL."""


Moment = Callable[[str, int, Tag], bool]
"""Takes `send` or `receive`, the peer and the tag; says whether that is when it happens. Asked by the victim."""


@dataclass
class Fate:
    """What happens to one rank, and when; once."""

    rank: int
    moment: Moment
    happens: Callable[["Victim"], None]
    done: bool = False


class Victim(Recorder):
    """A transport whose owner meets its fate."""

    def __init__(self, inner: Transport, fate: Fate, control: Control):
        super().__init__(inner)
        self.fate, self.control = fate, control
        self.drops = False
        """Whether everything that is sent is lost on the way."""

    def send(self, peer: int, tag: Tag, payload: bytes | bytearray | memoryview) -> None:
        self._look("send", peer, tag)
        if self.drops:
            self.watch.note_sent(peer)
        else:
            super().send(peer, tag, payload)

    def receive(self, peer: int, tag: Tag, timeout_s: float) -> memoryview:
        self._look("receive", peer, tag)
        return super().receive(peer, tag, timeout_s)

    def receive_any(self, peers: Collection[int], tag: Tag, timeout_s: float) -> tuple[int, memoryview]:
        self._look("receive", min(peers), tag)
        return super().receive_any(peers, tag, timeout_s)

    def _look(self, what: str, peer: int, tag: Tag) -> None:
        if not self.fate.done and self.fate.moment(what, peer, tag):
            self.fate.done = True
            self.fate.happens(self)


def kill(victim: Victim) -> None:
    """End a rank's connections without a word, as the kernel does."""
    assert isinstance(victim.control, Mortal)
    victim.control.die()
    victim.inner.close(abort=True)
    raise Killed


def cut_off(victim: Victim) -> None:
    """Lose all that a rank sends from now on; its control connection stays."""
    victim.drops = True


class Mortal:
    """A `Control` that may end without a word."""

    def __init__(self, control: Any):
        self.control = control
        self.dead = False

    def die(self) -> None:
        assert isinstance(self.control, Guest), "rank 0 is not killed here"
        self.dead = True
        self.control._stop.set()
        self.control._thread.join()
        self.control._socket.disable_monitor()
        self.control._gate.close()
        self.control._context.destroy(linger=0)

    def __enter__(self) -> "Mortal":
        self.control.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if not self.dead:
            self.control.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.control, name)


class _Watched(Notebook):
    """A reporter that says when it is about to take a row of a request."""

    control: Control
    before_row: Callable[[Control, Row], None]

    def row(self, table: str, row: Row) -> None:
        if table == "requests":
            self.before_row(self.control, row)
        super().row(table, row)


@dataclass
class Outcome:
    """What became of a run."""

    notebook: Notebook
    """Rank 0's."""
    ends: dict[int, BaseException | None]
    """How each rank's last life ended; None for in peace."""

    @property
    def requests(self) -> list[Any]:
        return self.notebook.rows.get("requests", [])


def run(
    config: BenchConfig,
    out: Path,
    world_size: int,
    *fates: Fate,
    returns: Callable[[int], bool] = lambda rank: False,
    before_row: Callable[[Control, Row], None] = lambda control, row: None,
    unreachable: Callable[[int, int], bool] = lambda rank, world_size: False,
) -> Outcome:
    """Run a benchmark whose ranks meet their fates; a killed one for which `returns` says so is started again.

    A rank for which `unreachable` says so does not connect to others when so many are to meet.
    """
    port = free_port()
    notebooks = [_Watched() for _ in range(world_size)]
    outcome = Outcome(notebooks[0], {})

    def live(rank: int) -> None:
        own = [fate for fate in fates if fate.rank == rank and not fate.done]
        opened: list[Control] = []

        def open_mortal(environment: Environment, limits: Limits) -> Control:
            opened.append(Mortal(open_control(environment, limits)))  # type: ignore[arg-type]
            notebooks[rank].control, notebooks[rank].before_row = opened[0], before_row
            return opened[0]

        def connect(*place: Any) -> Transport:
            if unreachable(rank, place[1]):
                raise TransportError(f"rank {rank} has no way to the others")
            transport = zeromq.connect(*place)
            return Victim(transport, own[0], opened[0]) if own else transport

        environment = Environment(rank, world_size, "127.0.0.1", port, out, 1, device=f"d{rank}")
        try:
            run_rank(config, environment, notebooks[rank], connect, open_mortal)
            outcome.ends[rank] = None
        except Killed as killed:
            outcome.ends[rank] = killed
            if returns(rank):
                live(rank)
        except Exception as error:  # noqa: BLE001 -- handed to the test, which says what it expects
            outcome.ends[rank] = error

    threads = [threading.Thread(target=live, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcome
