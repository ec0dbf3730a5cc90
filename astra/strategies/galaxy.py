"""Galaxy: heads and hidden units are split like tensor parallelism, norms and residuals over the tokens.

    rank r, layer l:   x of own tokens ──norm──► u ═ all-gather ═► tile of each rank ──own heads──► q, k, v
                       attend, own heads, all tokens ──► part of each tile ═ reduce-scatter ═► own tokens
                       bias, residual, norm, own tokens ──► h ═ all-gather ═► tile ──own hidden units──► part
                       ═ reduce-scatter ═► own tokens ──bias, residual──► x

Source: Galaxy (Ye et al., INFOCOM 2024, arXiv 2405.17245): hybrid model parallelism and tile-based overlap. ═ is a ring
in which a tile is multiplied while the next one travels. In the paper all tiles pass the MLP's first product before the
second begins; rows of an MLP do not depend on one another, so here a tile that arrives goes through both and on
into the reduction. Answers equal `single` with `wire: fp32`. The class token belongs to rank 0, in front of its slice.

Heads, hidden units and tokens are all dealt by the same weights; the paper splits the tokens evenly.

Traffic of one layer: 2 all-gathers and 2 reduce-scatters of T·D, in each of which a rank sends about (N - 1)/N of that
to its successor; after the last layer of a causal model, one row of D from the last rank to rank 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from astra.attention import attend, positions_of
from astra.models import BlockShard, ModelShape
from astra.partial_attention import KeyValues
from astra.partition import split
from astra.planning.rings import RingSteps
from astra.planning.schedule import Repeat, Schedule, Step, answered, per_rank
from astra.planning.work import LayerWork, Work
from astra.ring import Ring, plan_all_gather, plan_reduce_scatter
from astra.shards import add_bias, own_shards, shares
from astra.slices import answer_rank, bring_answer, content_rows, embed_slice, plan_answer, rows_per_rank
from astra.strategies.protocol import RankContext, Request
from astra.strategy_config import GalaxyConfig
from astra.traffic import PlannedMessage
from astra.transport import Tag

__all__ = ["GalaxyStrategy"]

PASSES_PER_LAYER = 2
"""Of each kind: around the attention and around the MLP."""


class GalaxyStrategy:
    """Every rank owns some tokens, some heads and some hidden units."""

    def __init__(self, context: RankContext, config: GalaxyConfig):
        self._model = context.model
        self._collectives = context.collectives
        self._timeline = context.timeline
        self._keep = context.keep
        self._keep_output = context.keep_output
        self._rank = context.collectives.rank
        self._ring = Ring(context.collectives, context.timeline, config.wire)
        self._ranges = context.ranges
        self._tile_rows = rows_per_rank(context.model.shape, context.ranges)
        self._shards = own_shards(context.model, self._rank, context.weights)
        self._positions = [positions_of([tokens]) for tokens in context.ranges]

    @torch.inference_mode()
    def forward(self, request: Request) -> Tensor | None:
        """Run all layers; rank 0 reads off the answer."""
        model, span = self._model, self._timeline.span
        with span("embed"):
            own = self._ranges[self._rank]
            x_BTD = embed_slice(model, request.inputs, own, request.first_row, self._rank)
        for layer, (block, shard) in enumerate(zip(model.blocks, self._shards, strict=True)):
            with span("rest", layer):
                u_BTD = block.attention_input(x_BTD)
            out_BTD = self._attend(Tag(request.index, layer, "attention"), shard, u_BTD)
            with span("rest", layer):
                a_BTD = block.after_attention(x_BTD, add_bias(out_BTD, block.output_bias))
                h_BTD = block.mlp_input(a_BTD)
            m_BTD = self._run_mlp(Tag(request.index, layer, "mlp"), shard, h_BTD)
            with span("rest", layer):
                x_BTD = block.after_mlp(a_BTD, add_bias(m_BTD, block.mlp_bias))
        if self._keep_output:
            self._keep_output(own, content_rows(model.shape, x_BTD, self._rank))
        return self._answer(request, x_BTD)

    @staticmethod
    def partition(shape: ModelShape, config: GalaxyConfig, weights: Sequence[float]) -> tuple[range, ...]:
        """Split the content tokens by weight.

        Raises:
            ValueError: There are fewer heads or tokens than ranks.
        """
        if len(weights) > shape.num_heads:
            raise ValueError(
                f"world size must be at most the model's {shape.num_heads} heads, got {len(weights)}; use fewer devices"
            )
        return split(shape.num_content_tokens, weights)

    @staticmethod
    def plan(
        shape: ModelShape, config: GalaxyConfig, ranges: Sequence[range], weights: Sequence[float]
    ) -> list[PlannedMessage]:
        """Gather and scatter x twice a layer; then the answer's row."""
        rows, count = rows_per_rank(shape, ranges), PASSES_PER_LAYER * shape.num_layers
        return [
            *plan_all_gather(rows, shape.width, config.wire, count),
            *plan_reduce_scatter(rows, shape.width, config.wire, count),
            *plan_answer(shape, answer_rank(shape, len(ranges))),
        ]

    @staticmethod
    def schedule(
        shape: ModelShape, config: GalaxyConfig, ranges: Sequence[range], weights: Sequence[float]
    ) -> Schedule:
        """Compute tile by tile while the next one travels, around the attention and through the MLP."""
        parts, rows, tokens = LayerWork(shape), rows_per_rank(shape, ranges), shape.num_tokens
        heads, hidden = shares(shape, weights)
        ring, last = RingSteps(parts, rows, config.wire), len(ranges) - 1

        def project(rank: int, owner: int) -> Work:
            return parts.query(rows[owner], heads[rank]) + parts.key_value(rows[owner], heads[rank])

        def run_hidden(rank: int, owner: int) -> Work:
            return parts.mlp(rows[owner], hidden[rank])

        def mlp_part(hop: int) -> list[Step]:
            return ring.gather_hop("mlp", hop, run_hidden) if hop else ring.part(run_hidden)(0)

        layer = (
            per_rank(parts.norm, rows),
            *ring.all_gather("attention", project),
            per_rank(lambda share: parts.attend(tokens, tokens, share), heads),
            *ring.reduce_scatter(
                "attention sum", ring.part(lambda rank, owner: parts.output(rows[owner], heads[rank]))
            ),
            per_rank(parts.norm, rows),
            *(ring.begin_gather("mlp") if last else ()),
            *ring.reduce_scatter("mlp sum", mlp_part),
            per_rank(parts.norm, rows),
        )
        steps = (per_rank(parts.embed, rows), Repeat(shape.num_layers, layer), *answered(shape, len(ranges)))
        return Schedule(steps, parts.sharded(hidden))

    def _attend(self, tag: Tag, shard: BlockShard, u_BTD: Tensor) -> Tensor:
        """Return the attention's output for own tokens, summed over all heads, from u of own tokens."""
        span = self._timeline.span
        projected: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        for owner, tile_BTD in self._ring.all_gather(tag, u_BTD, self._tile_rows):
            with span("rest", tag.layer):  # while the next tile is in flight
                positions = self._positions[owner]
                projected[owner] = shard.query(tile_BTD, positions), *shard.key_value(tile_BTD, positions)
        with span("attention", tag.layer):
            in_order = [projected[rank] for rank in range(len(projected))]
            q_BHTd, k_BHTd, v_BHTd = (torch.cat(tiles, dim=2) for tiles in zip(*in_order, strict=True))
            self._keep(tag.layer, KeyValues(k_BHTd, v_BHTd))
            context_BTD = attend(q_BHTd, k_BHTd, v_BHTd, causal=self._model.shape.causal)
            tiles = torch.split(context_BTD, self._tile_rows, dim=1)

        def part_of(rank: int) -> Tensor:
            with span("rest", tag.layer):
                return shard.output(tiles[rank])

        return self._ring.reduce_scatter(tag, part_of)

    def _run_mlp(self, tag: Tag, shard: BlockShard, h_BTD: Tensor) -> Tensor:
        """Return the MLP's output for own tokens, summed over all hidden units, from its input for own tokens."""
        arriving = self._ring.all_gather(tag, h_BTD, self._tile_rows)
        next(arriving)  # the own tile: it leaves, and is computed last

        def part_of(rank: int) -> Tensor:
            tile_BTD = h_BTD if rank == self._rank else next(arriving)[1]
            with self._timeline.span("rest", tag.layer):
                return shard.mlp(tile_BTD)

        return self._ring.reduce_scatter(tag._replace(phase="mlp sum"), part_of)

    def _answer(self, request: Request, x_BTD: Tensor) -> Tensor | None:
        """Bring the answer's row to rank 0 and read it."""
        shape, rank = self._model.shape, self._rank
        with self._timeline.span("wait" if rank == 0 else "send"):
            tag = Tag(request.index, shape.num_layers, "answer")
            owner = answer_rank(shape, len(self._ranges))
            row_BD = bring_answer(self._collectives, tag, x_BTD[:, shape.answer_token], owner)
        if row_BD is None:
            return None
        with self._timeline.span("head"):
            return self._model.head(row_BD)
