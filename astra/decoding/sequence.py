"""Decode over a cache that is sharded by tokens: each rank keeps the keys and values of its slice of the prompt.

    last rank, layer l:   x ──norm──► u ──► q ──────────────► peers: attend over their slices
                          k, v ──► own cache; attend           │
                          merge ◄── contexts and log-sums ◄────┘
                          context ──► rest of the layer ──► x

The last rank runs the layers and keeps the new tokens; merging by log-sum-exp is exact. In a causal model the last rank
has seen all keys in the prefill and could decode alone; it is the cache's memory that is shared out here, at the price
of one round trip a layer. Decoding over the slices of Voltage is ours: the paper is about whole inputs.

Traffic of one layer: D to each of N - 1 peers, D and one number a head back.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from astra.cache import KeyValueCache
from astra.decoding.protocol import Step, embed_token
from astra.models import ModelShape
from astra.partial_attention import Part, merge_parts
from astra.strategies import RankContext
from astra.strategy_config import SequenceConfig
from astra.traffic import PlannedMessage
from astra.transport import Tag
from astra.wire import decode, encode, encoded_size

__all__ = ["SequenceDecoder"]


class SequenceDecoder:
    """The last rank runs the layers, the others attend for it."""

    def __init__(self, context: RankContext, config: SequenceConfig, cache: KeyValueCache):
        self._model = context.model
        self._cache = cache
        self._collectives = context.collectives
        self._timeline = context.timeline
        self._wire = config.wire
        self._rank = context.collectives.rank
        self._last = context.collectives.world_size - 1

    @torch.inference_mode()
    def step(self, step: Step) -> Tensor | None:
        """Bring the token through all layers on the last rank, with the other ranks' help in attention."""
        if self._rank != self._last:
            for layer in range(self._model.shape.num_layers):
                self._help(step.index, layer)
            return None
        model, span = self._model, self._timeline.span
        with span("embed"):
            x_B1D, position = embed_token(model, step)
        for layer, block in enumerate(model.blocks):
            with span("rest", layer):
                u_B1D = block.attention_input(x_B1D)
                q_BH1d = block.query(u_B1D, position)
            with span("send", layer):
                query = Tag(step.index, layer, "query")
                self._collectives.broadcast(query, encode(q_BH1d[0, :, 0], self._wire), root=self._last)
            with span("rest", layer):  # while the query is in flight
                self._cache.extend(layer, *block.key_value(u_B1D, position))
            with span("attention", layer):
                own = self._cache.attend(layer, q_BH1d)
            with span("wait", layer):
                payloads = self._collectives.gather(Tag(step.index, layer, "part"), b"", root=self._last)
            with span("attention", layer):
                assert payloads is not None, "this is the rank that gathers"
                context_B1D = merge_parts([own, *(self._unpack(payload) for payload in payloads.values())])
            with span("rest", layer):
                x_B1D = block.finish(x_B1D, context_B1D)
        with span("head"):
            return model.head(x_B1D[:, 0])

    @staticmethod
    def home(world_size: int) -> int:
        """Choose where the token comes out."""
        return world_size - 1

    @staticmethod
    def embedders(world_size: int) -> Sequence[int]:
        """Tell the rank that runs the layers."""
        return (world_size - 1,)

    @staticmethod
    def holders(world_size: int) -> Sequence[int]:
        """Keep every rank's slice."""
        return range(world_size)

    @staticmethod
    def plan(shape: ModelShape, config: SequenceConfig, world_size: int) -> list[PlannedMessage]:
        """Send a query to every peer and a part back, in every layer."""
        last, query = world_size - 1, encoded_size(config.wire, shape.num_heads, shape.head_width)
        part = query + encoded_size("fp32", 1, shape.num_heads)
        return [
            message
            for peer in range(last)
            for message in (
                PlannedMessage(last, peer, query, shape.num_layers),
                PlannedMessage(peer, last, part, shape.num_layers),
            )
        ]

    def _help(self, index: int, layer: int) -> None:
        """Attend over this rank's slice for the last rank's query."""
        span, shape = self._timeline.span, self._model.shape
        with span("wait", layer):
            payload = self._collectives.broadcast(Tag(index, layer, "query"), None, root=self._last)
        with span("attention", layer):
            q_Hd = decode(payload, self._wire, shape.num_heads, shape.head_width)
            part = self._cache.attend(layer, q_Hd[None, :, None])
        with span("send", layer):
            packed = encode(part.context_BHTd[0, :, 0], self._wire) + encode(part.log_sum_BHT[:, :, 0], "fp32")
            self._collectives.gather(Tag(index, layer, "part"), packed, root=self._last)

    def _unpack(self, payload: memoryview) -> Part:
        """Undo what `_help` packs."""
        num_heads, width = self._model.shape.num_heads, self._model.shape.head_width
        split = encoded_size(self._wire, num_heads, width)
        context_Hd = decode(payload[:split], self._wire, num_heads, width)
        log_sum_1H = decode(payload[split:], "fp32", 1, num_heads)
        return Part(context_Hd[None, :, None], log_sum_1H[..., None])
