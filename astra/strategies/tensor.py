"""Tensor parallelism: each rank holds some heads and some hidden units, and all ranks add up their parts.

    rank r, layer l:   x ──norm──► u ──own heads──► q, k, v ──attend──► context ──own columns──► part ─┐
                       a ◄── norm, residual, bias ◄──────────────────────────────── all-reduce ◄───────┘
                       a ──norm──► own hidden units ──► part ── all-reduce ──► bias, residual ──► x

Source: Megatron-LM (Shoeybi et al., arXiv 1909.08053), section 3; the all-reduce is a ring. Every rank has all tokens,
so every rank needs the whole input, and x is the same on all of them. Answers equal `single` with `wire: fp32`; with
narrower wires every hop of a sum rounds once more, which costs more accuracy than in the other strategies.

Equal weights give every rank the same number of heads, so the world size must divide them; unequal weights deal whole
heads and hidden units in proportion.

Traffic of one layer: 2 all-reduces of T·D, in each of which a rank sends 2·(N - 1)/N of that to its successor.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from astra.attention import attend
from astra.models import ModelShape
from astra.partial_attention import KeyValues
from astra.planning.rings import RingSteps
from astra.planning.schedule import Compute, Repeat, Schedule, per_rank
from astra.planning.work import LayerWork, alone
from astra.ring import Ring, even_tiles, plan_all_reduce
from astra.shards import finish_layer, own_shards, shares
from astra.strategies.protocol import RankContext, Request
from astra.strategy_config import TensorConfig
from astra.traffic import PlannedMessage
from astra.transport import Tag

__all__ = ["TensorStrategy"]

ALL_REDUCES_PER_LAYER = 2


class TensorStrategy:
    """Every rank runs every layer on all tokens, with its share of the weights."""

    def __init__(self, context: RankContext, config: TensorConfig):
        self._model = context.model
        self._rank = context.collectives.rank
        self._timeline = context.timeline
        self._keep = context.keep
        self._keep_output = context.keep_output
        self._ring = Ring(context.collectives, context.timeline, config.wire)
        self._shards = own_shards(context.model, self._rank, context.weights)

    @torch.inference_mode()
    def forward(self, request: Request) -> Tensor | None:
        """Run all layers on all tokens; rank 0 reads the answer off its copy of x."""
        model, timeline, span = self._model, self._timeline, self._timeline.span
        with span("embed"):
            x_BTD = model.embed(request.inputs)
        for layer, (block, shard) in enumerate(zip(model.blocks, self._shards, strict=True)):
            with span("rest", layer):
                u_BTD = block.attention_input(x_BTD)
                q_BHTd, (k_BHTd, v_BHTd) = shard.query(u_BTD), shard.key_value(u_BTD)
                self._keep(layer, KeyValues(k_BHTd, v_BHTd))
            with span("attention", layer):
                context_BTE = attend(q_BHTd, k_BHTd, v_BHTd, causal=model.shape.causal)
            tag = Tag(request.index, layer, "attention")
            x_BTD = finish_layer(
                block, shard, x_BTD, context_BTE, add_up=self._ring.all_reduce, timeline=timeline, tag=tag
            )
        if self._rank != 0:
            return None
        if self._keep_output:
            shape = model.shape
            self._keep_output(range(shape.num_content_tokens), x_BTD[:, shape.num_class_tokens :])
        with span("head"):
            return model.head(x_BTD[:, model.shape.answer_token])

    @staticmethod
    def partition(shape: ModelShape, config: TensorConfig, weights: Sequence[float]) -> tuple[range, ...]:
        """Give every rank all tokens, if the heads can be dealt.

        Raises:
            ValueError: The weights are equal and the world size does not divide the heads, or there are too few heads.
        """
        world_size, heads = len(weights), shape.num_heads
        valid = [size for size in range(1, heads + 1) if heads % size == 0]
        if len(set(weights)) == 1 and world_size not in valid:
            raise ValueError(
                f"world size must divide the model's {heads} heads, got {world_size}; use "
                f"{', '.join(map(str, valid))} devices, or give `partition` unequal weights"
            )
        if world_size > heads:
            raise ValueError(
                f"world size must be at most the model's {heads} heads, got {world_size}; use fewer devices"
            )
        return (range(shape.num_content_tokens),) * world_size

    @staticmethod
    def plan(
        shape: ModelShape, config: TensorConfig, ranges: Sequence[range], weights: Sequence[float]
    ) -> list[PlannedMessage]:
        """Reduce and gather the whole of x twice a layer."""
        count = ALL_REDUCES_PER_LAYER * shape.num_layers
        return plan_all_reduce(shape.num_tokens, len(ranges), shape.width, config.wire, count=count)

    @staticmethod
    def schedule(
        shape: ModelShape, config: TensorConfig, ranges: Sequence[range], weights: Sequence[float]
    ) -> Schedule:
        """Compute on own heads, add up, compute on own hidden units, add up."""
        parts, tokens, world_size = LayerWork(shape), shape.num_tokens, len(ranges)
        heads, hidden = shares(shape, weights)
        tiles = [len(tile) for tile in even_tiles(tokens, world_size)]
        ring = RingSteps(parts, tiles, config.wire)
        attended = per_rank(
            lambda share: (
                parts.query(tokens, share)
                + parts.key_value(tokens, share)
                + parts.attend(tokens, tokens, share)
                + parts.output(tokens, share)
            ),
            heads,
        )
        layer = (
            attended,
            *ring.all_reduce("attention"),
            per_rank(lambda share: parts.norm(tokens) + parts.mlp(tokens, share), hidden),
            *ring.all_reduce("mlp"),
            per_rank(lambda _: parts.norm(tokens), hidden),
        )
        head = Compute(alone(0, world_size, parts.head()))
        steps = (per_rank(lambda _: parts.embed(tokens), heads), Repeat(shape.num_layers, layer), head)
        return Schedule(steps, parts.sharded(hidden))
