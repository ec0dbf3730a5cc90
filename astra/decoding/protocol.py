"""The types that every way of decoding shares.

legend: B batch (always 1), D width, C vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from astra.cache import KeyValueCache
from astra.models import ModelAdapter, ModelShape
from astra.strategies import RankContext
from astra.traffic import PlannedMessage

__all__ = ["Decoder", "Step", "embed_token"]


@dataclass(frozen=True)
class Step:
    """One token on its way through the model."""

    index: int
    """Numbers steps over the whole run, as requests: it tags every message."""
    position: int
    """Where in the text the token is, from 0."""
    token: int | None
    """Its id, on the ranks that embed it; None elsewhere."""


class Decoder(Protocol):
    """One way to bring one token through all layers, over the caches that a strategy's prefill has filled."""

    def __init__(self, context: RankContext, config: Any, cache: KeyValueCache) -> None: ...

    def step(self, step: Step) -> Tensor | None:
        """Take part in one step; return the scores of the next token, logits_BC, on rank `home` and None elsewhere."""

    @staticmethod
    def home(world_size: int) -> int:
        """Return the rank that gets the scores and chooses the next token."""

    @staticmethod
    def embedders(world_size: int) -> Sequence[int]:
        """Return the ranks that must know a token before its step."""

    @staticmethod
    def holders(world_size: int) -> Sequence[int]:
        """Return the ranks that need what they attended to in the prefill."""

    @staticmethod
    def plan(shape: ModelShape, config: Any, world_size: int) -> list[PlannedMessage]:
        """Return every message of one step, the token's own not included. Pure."""


def embed_token(model: ModelAdapter, step: Step) -> tuple[Tensor, Tensor]:
    """Return the token as it enters layer 0, x_B1D, and its position as blocks take it."""
    assert step.token is not None, "only ranks that were told the token embed it"
    own = range(step.position, step.position + 1)
    return model.embed_content(torch.tensor([[step.token]]), own, step.position), torch.tensor([step.position])
