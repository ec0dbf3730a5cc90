"""The face of the control plane towards the thread that serves requests.

    with open_control(...) as control:           joined with rank 0, reporting
        epoch = control.first_epoch()            all ranks have loaded and are there
        while epoch is not None:
            control.begin(epoch, watch)          from now on losses interrupt what waits
            ... RecallError ──► epoch = control.next_epoch(position)

`alone` does nothing: for one rank, and for ranks that are threads of one process.
"""

from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from astra.control.words import Epoch
from astra.failure_config import FailuresConfig, Policy
from astra.transport.watch import Watch

__all__ = ["BEAT_S", "Control", "Forgives", "Limits", "Position", "alone"]

BEAT_S = 0.1
"""How often a rank reports."""

Forgives = Callable[[frozenset[int]], bool]
"""Whether what goes on can do without these ranks of the epoch."""


class Position(NamedTuple):
    """Where a run is."""

    job: int
    request: int
    """Of the job, those to warm up first."""
    message: int
    """Tags the request's messages."""


class Limits(NamedTuple):
    """How long what may take, and what happens if it takes longer."""

    policy: Policy
    detect_s: float
    timeout_s: float

    @classmethod
    def of(cls, failures: FailuresConfig, timeout_s: float) -> "Limits":
        """Take them from a config."""
        return cls(failures.on_failure, failures.detect_s, timeout_s)


class Control(Protocol):
    """One rank's end; a context manager that says farewell, or why this rank fails."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def first_epoch(self) -> Epoch | None:
        """Wait until all ranks are there and have loaded; None if the run ends without this one.

        Raises:
            PeerTimeoutError: Some did not show up; names them.
            PeerLostError: One has died.
        """

    def next_epoch(self, position: Position) -> Epoch | None:
        """Wait until all that are left, and those that are back, can go on together; None if the run has ended.

        `position` counts on rank 0, which tells the others in the epoch.
        """

    def begin(self, epoch: Epoch, watch: Watch) -> None:
        """Take part: losses show in `watch` from now on."""

    def serving(self, forgives: Forgives | None) -> None:
        """Say what may be lost from now on: None where nobody may; counts on rank 0.

        Raises:
            RecallError: Ranks that were lost earlier are needed for this.
        """

    @property
    def someone_waits(self) -> bool:
        """Whether a rank has come back that could join; known on rank 0."""

    def meeting_failed(self, error: Exception) -> None:
        """Take note that the members could not connect: on rank 0, leave out whoever is new, or raise the error."""

    @property
    def gone(self) -> frozenset[int]:
        """Ranks of the epoch that are done without."""


class _Alone:
    """Nobody to lose."""

    def __init__(self, world_size: int):
        self._world_size = world_size
        self._watch = Watch()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def first_epoch(self) -> Epoch | None:
        """All are there."""
        return Epoch(0, tuple(range(self._world_size)), ("",) * self._world_size, 0, 0, 0, 0)

    def next_epoch(self, position: Position) -> Epoch | None:
        """There is none."""
        return None

    def begin(self, epoch: Epoch, watch: Watch) -> None:
        """Nothing shows."""
        self._watch = watch

    def serving(self, forgives: Forgives | None) -> None:
        """Nobody is lost."""

    someone_waits = False

    def meeting_failed(self, error: Exception) -> None:
        """Raise the error."""
        raise error

    @property
    def gone(self) -> frozenset[int]:
        """Ranks that are done without."""
        return self._watch.gone


def alone(world_size: int) -> Control:
    """Stand in for a control plane where there is nobody to lose."""
    return _Alone(world_size)
