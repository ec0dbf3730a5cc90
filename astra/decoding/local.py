"""Decode on one rank that has all it needs: nothing moves but the tokens, on their way to the terminal.

`single` does so on rank 0. ASTRA and PRISM do so on the last rank: in a causal model its cache spans the whole prompt,
exact for its own tokens and quantised, or as means, for those of the other ranks.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from astra.attention import merge_heads
from astra.cache import KeyValueCache
from astra.decoding.protocol import Step, embed_token
from astra.models import ModelShape
from astra.strategies import RankContext
from astra.traffic import PlannedMessage

__all__ = ["FirstRankDecoder", "LastRankDecoder"]


class FirstRankDecoder:
    """Rank 0 decodes, the others idle."""

    def __init__(self, context: RankContext, config: Any, cache: KeyValueCache):
        self._model = context.model
        self._cache = cache
        self._timeline = context.timeline
        self._decodes = context.collectives.rank == self.home(context.collectives.world_size)

    @torch.inference_mode()
    def step(self, step: Step) -> Tensor | None:
        """Bring the token through all layers on the one rank that decodes."""
        if not self._decodes:
            return None
        model, span = self._model, self._timeline.span
        with span("embed"):
            x_B1D, position = embed_token(model, step)
        for layer, block in enumerate(model.blocks):
            with span("rest", layer):
                u_B1D = block.attention_input(x_B1D)
                q_BH1d = block.query(u_B1D, position)
                self._cache.extend(layer, *block.key_value(u_B1D, position))
            with span("attention", layer):
                context_B1D = merge_heads(self._cache.attend(layer, q_BH1d).context_BHTd)
            with span("rest", layer):
                x_B1D = block.finish(x_B1D, context_B1D)
        with span("head"):
            return model.head(x_B1D[:, 0])

    @staticmethod
    def home(world_size: int) -> int:
        """Choose on the terminal."""
        return 0

    @classmethod
    def embedders(cls, world_size: int) -> Sequence[int]:
        """Tell the rank that decodes."""
        return (cls.home(world_size),)

    @classmethod
    def holders(cls, world_size: int) -> Sequence[int]:
        """Keep the cache of the rank that decodes."""
        return (cls.home(world_size),)

    @staticmethod
    def plan(shape: ModelShape, config: Any, world_size: int) -> list[PlannedMessage]:
        """Send nothing."""
        return []


class LastRankDecoder(FirstRankDecoder):
    """The last rank decodes, the others idle."""

    @staticmethod
    def home(world_size: int) -> int:
        """Choose where the token comes out."""
        return world_size - 1
