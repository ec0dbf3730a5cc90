"""The types that every strategy shares: what it is given, what it must offer.

Apart from the registry, so that a strategy imports this and never another strategy.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from astra.collectives import Collectives
from astra.models import ModelAdapter, ModelShape
from astra.partial_attention import KeyValues
from astra.planning.schedule import Schedule
from astra.timeline import Timeline
from astra.traffic import PlannedMessage

__all__ = ["Keep", "KeepOutput", "RankContext", "Request", "ServesMany", "StatesSchedule", "Strategy"]


class Keep(Protocol):
    """Takes what a rank attends to in a layer; the tensors are only lent."""

    def __call__(self, layer: int, *parts: KeyValues) -> None:
        """Take one layer's keys and values, in one or more parts."""


class KeepOutput(Protocol):
    """Takes what came of content tokens; the tensor is only lent."""

    def __call__(self, tokens: range, x_BTD: Tensor) -> None:
        """Take the rows after the last layer, before `ModelAdapter.head`, of the content `tokens`."""


def _keep_nothing(layer: int, *parts: KeyValues) -> None: ...


@dataclass(frozen=True)
class Request:
    """One input to answer, as this rank sees it."""

    index: int
    """Numbers requests over the whole run: it tags every message."""
    inputs: Tensor
    """Whole input, or the band of its rows that covers this rank's tokens; float."""
    first_row: int = 0
    """Row of the whole input at which `inputs` starts."""


@dataclass(frozen=True)
class RankContext:
    """What every strategy gets on its rank."""

    model: ModelAdapter
    collectives: Collectives
    ranges: tuple[range, ...]
    """Content tokens of every rank, from `Strategy.partition`."""
    weights: tuple[float, ...]
    """What share of the work each rank was given, in any unit; strategies that split heads or layers go by it."""
    timeline: Timeline
    codebook_folder: Path | None = None
    """What `astra fit` left for this config; only strategies that quantise read it."""
    keep: Keep = _keep_nothing
    """Called in every layer that this rank runs with the keys and values to generate from, once they are complete."""
    keep_output: KeepOutput | None = None
    """Called at the end of `forward`; over all ranks, each content token is given exactly once. Given on all ranks or
    on none: a strategy may need traffic to have whole rows, which `plan` leaves out."""


class Strategy(Protocol):
    """One way to spread a forward pass over the ranks."""

    def __init__(self, context: RankContext, config: Any) -> None: ...

    def forward(self, request: Request) -> Tensor | None:
        """Take part in answering `request`; return logits_BC on rank 0 and None elsewhere."""

    @staticmethod
    def partition(shape: ModelShape, config: Any, weights: Sequence[float]) -> tuple[range, ...]:
        """Return the content tokens that each rank embeds; empty for a rank that needs no input.

        Raises:
            ValueError: The model cannot be split over these ranks; says what can.
        """

    @staticmethod
    def plan(shape: ModelShape, config: Any, ranges: Sequence[range], weights: Sequence[float]) -> list[PlannedMessage]:
        """Return every message of one request of batch 1, input placement not included. Pure."""


@runtime_checkable
class ServesMany(Protocol):
    """What a strategy has besides if it can have several requests under way at once."""

    in_flight: int
    """Most requests under way."""

    def forward_many(self, requests: Iterable[Request]) -> Iterator[Tensor | None]:
        """Take part in answering the requests in order; yield what `forward` would return for each."""


@runtime_checkable
class StatesSchedule(Protocol):
    """What a strategy has besides if its ranks do something else than run all layers on their tokens in lockstep."""

    @staticmethod
    def schedule(shape: ModelShape, config: Any, ranges: Sequence[range], weights: Sequence[float]) -> Schedule:
        """Return who computes, sends and waits in which order, for one request of batch 1. Pure."""
