"""Sequence parallelism: each rank keeps its slice of tokens, and all-gathers the layer's input in every layer.

Source: Voltage (Hu and Li, ICDCS 2024), position-wise partition. Each rank projects the keys and values of all tokens
that it looks at itself and attends for its own. With `wire: fp32` the answer equals `single`; narrower wires quantise
what the peers see of a slice, never the slice itself. The class token belongs to rank 0, in front of its slice. In a
causal model only later ranks look at a slice, so it goes to no others; the last rank, which has the answer's row, sees
all of them.

Traffic of one layer: from each rank its (T/N) rows of D to N − 1 peers, or to the later ones in a causal model, where
the row of x that the head reads goes to rank 0 at the end.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from astra.attention import positions_of
from astra.config import SequenceConfig
from astra.dealing import split_tokens
from astra.models import ModelShape
from astra.partial_attention import KeyValues, attend_part, merge_parts
from astra.planning.schedule import Broadcast, Repeat, Schedule, Wait, answered, per_rank, rows_seen, rows_shown
from astra.planning.work import LayerWork, Work
from astra.slices import answer_rank, bring_answer, content_rows, embed_slice, plan_answer, rows_per_rank
from astra.strategies.protocol import RankContext, Request
from astra.traffic import PlannedMessage, all_to_all
from astra.transport import Tag
from astra.wire import decode, encode, encoded_size

__all__ = ["SequenceStrategy"]


class SequenceStrategy:
    """Every rank runs every layer on its own tokens."""

    def __init__(self, context: RankContext, config: SequenceConfig):
        shape, ranges = context.model.shape, context.ranges
        self._model = context.model
        self._collectives = context.collectives
        self._timeline = context.timeline
        self._keep = context.keep
        self._keep_output = context.keep_output
        self._wire = config.wire
        self._own_tokens = ranges[context.collectives.rank]
        self._num_rows = rows_per_rank(shape, ranges)
        self._lookers = context.collectives.lookers(shape.causal)
        self._looked_at = context.collectives.looked_at(shape.causal)
        self._own_positions = positions_of([self._own_tokens])
        self._remote_positions = positions_of(ranges[peer] for peer in self._looked_at)

    @torch.inference_mode()
    def forward(self, request: Request) -> Tensor | None:
        """Run all layers on this rank's tokens; rank 0 reads the answer off the row that the head is for."""
        model, rank, span = self._model, self._collectives.rank, self._timeline.span
        with span("embed"):
            x_BTD = embed_slice(model, request.inputs, self._own_tokens, request.first_row, rank)
        for layer, block in enumerate(model.blocks):
            with span("encode", layer):
                payload = encode(x_BTD.flatten(0, 1), self._wire) if self._lookers else b""
            with span("send", layer):
                tag = Tag(request.index, layer, "slice")
                pending = self._collectives.start_exchange(tag, payload, to=self._lookers, of=self._looked_at)
            with span("rest", layer):  # while the slices are in flight
                u_BTD = block.attention_input(x_BTD)
                q_BHTd = block.query(u_BTD, self._own_positions)
                own = KeyValues(*block.key_value(u_BTD, self._own_positions))
                self._keep(layer, own)  # each rank its slice
            with span("attention", layer):
                seen = [attend_part(q_BHTd, own, causal=model.shape.causal)]
            with span("wait", layer):
                payloads = pending.wait()
            if payloads:
                with span("remote", layer):
                    remote_BRD = block.attention_input(self._decode(payloads, len(x_BTD)))
                    remote = KeyValues(*block.key_value(remote_BRD, self._remote_positions))
            with span("attention", layer):
                if payloads:
                    seen.append(attend_part(q_BHTd, remote))
                context_BTD = merge_parts(seen)
            with span("rest", layer):
                x_BTD = block.finish(x_BTD, context_BTD)
        if self._keep_output:
            self._keep_output(self._own_tokens, content_rows(model.shape, x_BTD, rank))
        return self._answer(request, x_BTD[:, model.shape.answer_token])

    @staticmethod
    def partition(shape: ModelShape, config: SequenceConfig, weights: Sequence[float]) -> tuple[range, ...]:
        """Split the content tokens for equal work."""
        return split_tokens(shape, weights)

    @staticmethod
    def plan(
        shape: ModelShape, config: SequenceConfig, ranges: Sequence[range], weights: Sequence[float]
    ) -> list[PlannedMessage]:
        """Send each rank's slice to whoever looks at it in every layer, then the answer's row to rank 0."""
        sizes = [encoded_size(config.wire, rows, shape.width) for rows in rows_per_rank(shape, ranges)]
        slices = all_to_all(sizes, count=shape.num_layers, causal=shape.causal)
        return slices + plan_answer(shape, answer_rank(shape, len(ranges)))

    @staticmethod
    def schedule(
        shape: ModelShape, config: SequenceConfig, ranges: Sequence[range], weights: Sequence[float]
    ) -> Schedule:
        """Project own keys while slices are in flight, and the peers' when they are there."""
        parts, rows, causal = LayerWork(shape), rows_per_rank(shape, ranges), shape.causal
        sizes = tuple(encoded_size(config.wire, own, shape.width) for own in rows)

        def look(own: int, remote: int) -> Work:
            projected = parts.decode(config.wire, remote) + parts.norm(remote) + parts.key_value(remote)
            return projected + parts.attend(own, remote) + parts.finish(own)

        layer = (
            per_rank(lambda shown: parts.encode(config.wire, shown), rows_shown(rows, causal=causal)),
            Broadcast(sizes, causal),
            per_rank(lambda own: parts.query(own) + parts.key_value(own) + parts.attend(own, own), rows),
            Wait(),
            per_rank(look, rows, rows_seen(rows, causal=causal)),
        )
        steps = (per_rank(parts.embed, rows), Repeat(shape.num_layers, layer), *answered(shape, len(ranges)))
        return Schedule(steps, (float(parts.all_weights),) * len(ranges))

    def _answer(self, request: Request, row_BD: Tensor) -> Tensor | None:
        """Bring the answer's row to rank 0 and apply the head there."""
        tag = Tag(request.index, self._model.shape.num_layers, "answer")
        owner = answer_rank(self._model.shape, self._collectives.world_size)
        with self._timeline.span("send" if self._collectives.rank == owner else "wait"):
            answer_BD = bring_answer(self._collectives, tag, row_BD, owner)
        if answer_BD is None:
            return None
        with self._timeline.span("head"):
            return self._model.head(answer_BD)

    def _decode(self, payloads: dict[int, memoryview], batch: int) -> Tensor:
        """Return the peers' rows, x_BRD, in order of rank."""
        width = self._model.shape.width
        slices = [
            decode(payload, self._wire, batch * self._num_rows[peer], width).view(batch, -1, width)
            for peer, payload in payloads.items()
        ]
        return torch.cat(slices, dim=1)
