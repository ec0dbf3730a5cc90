"""Decode with heads and hidden units split over the ranks: two all-reduces of one row a layer.

Each rank has the keys and values of its heads for all tokens. Used after the prefills of `tensor` (Megatron-LM) and of
`galaxy`, whose tiles of tokens a single token cannot be cut into. Rank 0 scores and chooses, and tells the others.

The row is cut into pieces of one head's width, which the ring takes for its tiles: 2·(N - 1) hops of about D/N.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from astra.attention import merge_heads
from astra.cache import KeyValueCache
from astra.decoding.protocol import Step, embed_token
from astra.models import ModelShape
from astra.ring import Ring, plan_all_reduce
from astra.shards import finish_layer, own_shards
from astra.strategies import RankContext
from astra.strategy_config import GalaxyConfig, TensorConfig
from astra.traffic import PlannedMessage
from astra.transport import Tag

__all__ = ["TensorDecoder"]

ALL_REDUCES_PER_LAYER = 2


class TensorDecoder:
    """Every rank runs every layer with its share of the weights."""

    def __init__(self, context: RankContext, config: TensorConfig | GalaxyConfig, cache: KeyValueCache):
        self._model = context.model
        self._cache = cache
        self._rank = context.collectives.rank
        self._timeline = context.timeline
        self._ring = Ring(context.collectives, context.timeline, config.wire)
        self._shards = own_shards(context.model, self._rank, context.weights)

    @torch.inference_mode()
    def step(self, step: Step) -> Tensor | None:
        """Bring the token through all layers on all ranks; rank 0 scores it."""
        model, timeline, span = self._model, self._timeline, self._timeline.span
        with span("embed"):
            x_B1D, position = embed_token(model, step)
        for layer, (block, shard) in enumerate(zip(model.blocks, self._shards, strict=True)):
            with span("rest", layer):
                u_B1D = block.attention_input(x_B1D)
                q_BH1d = shard.query(u_B1D, position)
                self._cache.extend(layer, *shard.key_value(u_B1D, position))
            with span("attention", layer):
                context_B1E = merge_heads(self._cache.attend(layer, q_BH1d).context_BHTd)
            tag = Tag(step.index, layer, "attention")
            x_B1D = finish_layer(block, shard, x_B1D, context_B1E, add_up=self._sum, timeline=timeline, tag=tag)
        if self._rank != 0:
            return None
        with span("head"):
            return model.head(x_B1D[:, 0])

    @staticmethod
    def home(world_size: int) -> int:
        """Choose on the terminal."""
        return 0

    @staticmethod
    def embedders(world_size: int) -> Sequence[int]:
        """Tell all ranks."""
        return range(world_size)

    @staticmethod
    def holders(world_size: int) -> Sequence[int]:
        """Keep the caches of all ranks."""
        return range(world_size)

    @staticmethod
    def plan(shape: ModelShape, config: TensorConfig | GalaxyConfig, world_size: int) -> list[PlannedMessage]:
        """Reduce and gather one row twice a layer."""
        width, count = shape.width // shape.num_heads, ALL_REDUCES_PER_LAYER * shape.num_layers
        return plan_all_reduce(shape.num_heads, world_size, width, config.wire, count=count)

    def _sum(self, tag: Tag, part_B1D: Tensor) -> Tensor:
        """Add up the ranks' rows."""
        pieces = part_B1D.view(len(part_B1D), self._model.shape.num_heads, -1)
        return self._ring.all_reduce(tag, pieces).view(part_B1D.shape)
