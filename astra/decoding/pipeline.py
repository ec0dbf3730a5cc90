"""Decode layer by layer over the ranks: one row hops from stage to stage.

    rank 0: embed, layers 0 … a   ──row──►  rank 1: layers a + 1 … b  ──row──►  …  last rank: head  ──token──►  rank 0

Each rank has the keys and values of its layers for all tokens. The next token is chosen on the last rank, so that a
token and not a row goes back. One text is under way: its next token cannot begin before this one has come out.

Source: EdgeShard (Zhang et al., arXiv 2405.14371), sequential inference.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from astra.attention import merge_heads
from astra.cache import KeyValueCache
from astra.decoding.protocol import Step, embed_token
from astra.models import ModelShape
from astra.partition import split
from astra.strategies import RankContext
from astra.strategy_config import PipelineConfig
from astra.traffic import PlannedMessage
from astra.transport import Tag
from astra.wire import decode, encode, encoded_size

__all__ = ["PipelineDecoder"]


class PipelineDecoder:
    """Every rank is one stage."""

    def __init__(self, context: RankContext, config: PipelineConfig, cache: KeyValueCache):
        self._model = context.model
        self._cache = cache
        self._collectives = context.collectives
        self._timeline = context.timeline
        self._wire = config.wire
        self._rank = context.collectives.rank
        self._last = context.collectives.world_size - 1
        self._layers = split(context.model.shape.num_layers, context.weights)[self._rank]

    @torch.inference_mode()
    def step(self, step: Step) -> Tensor | None:
        """Take the row, bring it through this rank's layers and hand it on; the last rank scores it."""
        model, span = self._model, self._timeline.span
        x_B1D, position = self._receive(step)
        for layer in self._layers:
            block = model.blocks[layer]
            with span("rest", layer):
                u_B1D = block.attention_input(x_B1D)
                q_BH1d = block.query(u_B1D, position)
                self._cache.extend(layer, *block.key_value(u_B1D, position))
            with span("attention", layer):
                context_B1D = merge_heads(self._cache.attend(layer, q_BH1d).context_BHTd)
            with span("rest", layer):
                x_B1D = block.finish(x_B1D, context_B1D)
        if self._rank == self._last:
            with span("head"):
                return model.head(x_B1D[:, 0])
        with span("send", self._layers.stop - 1):
            payload = encode(x_B1D[:, 0], self._wire)
            self._collectives.transport.send(self._rank + 1, Tag(step.index, self._layers.stop, "stage"), payload)
        return None

    @staticmethod
    def home(world_size: int) -> int:
        """Choose where the token comes out."""
        return world_size - 1

    @staticmethod
    def embedders(world_size: int) -> Sequence[int]:
        """Tell the first stage, which is the terminal."""
        return (0,)

    @staticmethod
    def holders(world_size: int) -> Sequence[int]:
        """Keep the caches of all ranks."""
        return range(world_size)

    @staticmethod
    def plan(shape: ModelShape, config: PipelineConfig, world_size: int) -> list[PlannedMessage]:
        """Hand one row over each boundary."""
        size = encoded_size(config.wire, 1, shape.width)
        return [PlannedMessage(rank, rank + 1, size) for rank in range(world_size - 1)]

    def _receive(self, step: Step) -> tuple[Tensor, Tensor]:
        """Embed the token on rank 0; take its row from the rank before elsewhere."""
        if self._rank == 0:
            with self._timeline.span("embed"):
                return embed_token(self._model, step)
        with self._timeline.span("wait", self._layers.start):
            tag = Tag(step.index, self._layers.start, "stage")
            payload = self._collectives.transport.receive(self._rank - 1, tag, self._collectives.timeout_s)
        return decode(payload, self._wire, 1, self._model.shape.width)[None], torch.tensor([step.position])
