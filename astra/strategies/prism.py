"""PRISM: each rank keeps its slice of tokens, and peers see only the means of segments of it.

    rank r, layer l:   x of own tokens ──cut into L_s segments──► means ──► peers (causal: later ranks only)
                       x ──norm──► u ──► q, k, v of own tokens (while means are in flight)
                       peers' means ──norm──► u ──► k, v ──► attend over [means, logit + log s | own tokens]

Source: PRISM (Qazi, Iosifidis, Zhang, arXiv 2507.12145). Only its abstract was at hand, so the formulas are a
reconstruction: a slice of T/N tokens becomes L_s means, CR = (T/N)/L_s; a mean that stands for s tokens adds log s to
its logit, which equals repeating it s times; keys and values are projected from T/N + (N - 1)·L_s rows. At BERT-Base's
shape with 256 tokens, two devices and CR = 128 this reproduces the published 51.24 % less computation per device and
99.2 % less traffic. Causal models see their own tokens causally and the means of earlier ranks only. The class token is
a row of rank 0's slice like any other. Not stated and ours: segments differ by at most one token; where keys have
positions (RoPE), a mean has that of its segment's middle.

Traffic of one layer: from each rank L_s rows of D to N - 1 peers (causal: to later ranks); after the last layer of a
causal model, one row of D from the last rank to rank 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from astra.attention import positions_of
from astra.exchange import PendingRows, open_exchange, plan_rows
from astra.models import ModelShape
from astra.partial_attention import KeyValues, attend_part, hide_absent, merge_parts
from astra.partition import split
from astra.planning.schedule import Repeat, Schedule, Wait, answered, per_rank, rows_seen, show_rows
from astra.planning.work import LayerWork, Work
from astra.rows import Rows, ValueRows
from astra.segments import count_segments, cut_segments, log_counts, segment_means
from astra.slices import answer_rank, bring_answer, content_rows, embed_slice, plan_answer, rows_per_rank
from astra.strategies.protocol import RankContext, Request
from astra.strategy_config import PrismConfig
from astra.traffic import PlannedMessage
from astra.transport import Tag

__all__ = ["PrismStrategy"]


class PrismStrategy:
    """Every rank runs every layer on its own tokens."""

    def __init__(self, context: RankContext, config: PrismConfig):
        self._model = context.model
        self._collectives = context.collectives
        self._timeline = context.timeline
        self._keep = context.keep
        self._keep_output = context.keep_output
        self._rank = context.collectives.rank
        self._ranges = context.ranges
        shape = context.model.shape
        self._segments = _segments_per_rank(shape, config, context.ranges)
        self._looked_at = context.collectives.looked_at(shape.causal)
        self._exchange = open_exchange(
            config.transport,
            context.collectives,
            ValueRows(config.wire, shape.width),
            [len(segments) for segments in self._segments],
            causal=shape.causal,
            carry_over=lambda _, means_RV: means_RV,  # x changes little from layer to layer
        )
        own = context.ranges[self._rank]
        self._own_positions = positions_of([own])
        self._mean_positions = torch.tensor(
            [
                context.ranges[rank].start + (segment.start + segment.stop - 1) // 2
                for rank in self._looked_at
                for segment in self._segments[rank]
            ],
            dtype=torch.int64,
        )
        logs = [log_counts(self._segments[rank]) for rank in self._looked_at]
        self._log_counts = torch.cat(logs) if logs else torch.empty(0)

    @torch.inference_mode()
    def forward(self, request: Request) -> Tensor | None:
        """Run all layers on this rank's tokens; rank 0 reads off the answer."""
        model, span = self._model, self._timeline.span
        with span("embed"):
            own = self._ranges[self._rank]
            x_BTD = embed_slice(model, request.inputs, own, request.first_row, self._rank)
        for layer, block in enumerate(model.blocks):
            tag = Tag(request.index, layer, "means")
            pending = self._send_means(tag, x_BTD)
            with span("rest", layer):  # while the means are in flight
                u_BTD = block.attention_input(x_BTD)
                q_BHTd = block.query(u_BTD, self._own_positions)
                k_BHTd, v_BHTd = block.key_value(u_BTD, self._own_positions)
            keys = [KeyValues(k_BHTd, v_BHTd)]
            with span("attention", layer):
                seen = [attend_part(q_BHTd, keys[0], causal=model.shape.causal)]
            if self._looked_at:
                with span("wait", layer):
                    rows = pending.wait()
                with span("remote", layer):
                    keys += self._means_keys(layer, rows, len(x_BTD))
            with span("attention", layer):
                self._keep(layer, *keys)
                seen += [attend_part(q_BHTd, means) for means in keys[1:]]
                context_BTD = merge_parts(seen)
            with span("rest", layer):
                x_BTD = block.finish(x_BTD, context_BTD)
        if self._keep_output:
            self._keep_output(own, content_rows(model.shape, x_BTD, self._rank))
        return self._answer(request, x_BTD)

    @staticmethod
    def partition(shape: ModelShape, config: PrismConfig, weights: Sequence[float]) -> tuple[range, ...]:
        """Split the content tokens by weight."""
        return split(shape.num_content_tokens, weights)

    @staticmethod
    def plan(
        shape: ModelShape, config: PrismConfig, ranges: Sequence[range], weights: Sequence[float]
    ) -> list[PlannedMessage]:
        """Send each rank's means to those that may see them in every layer, then the answer's row.

        Raises:
            ValueError: A slice has fewer tokens than it is to have segments.
        """
        means = plan_rows(
            config.transport,
            ValueRows(config.wire, shape.width),
            [len(segments) for segments in _segments_per_rank(shape, config, ranges)],
            shape.width,
            rounds=shape.num_layers,
            causal=shape.causal,
        )
        return means + plan_answer(shape, answer_rank(shape, len(ranges)))

    @staticmethod
    def schedule(shape: ModelShape, config: PrismConfig, ranges: Sequence[range], weights: Sequence[float]) -> Schedule:
        """Project own keys while means are in flight, and the means' when they are there."""
        parts, rows, causal = LayerWork(shape), rows_per_rank(shape, ranges), shape.causal
        counts = [len(segments) for segments in _segments_per_rank(shape, config, ranges)]

        def look(own: int, remote: int) -> Work:
            projected = parts.decode(config.wire, remote) + parts.norm(remote) + parts.key_value(remote)
            return projected + parts.attend(own, remote) + parts.finish(own)

        layer = (
            per_rank(lambda own, count: parts.norm(own) + parts.encode(config.wire, count), rows, counts),
            show_rows(config.transport, ValueRows(config.wire, shape.width), counts, shape.width, causal=causal),
            per_rank(lambda own: parts.query(own) + parts.key_value(own) + parts.attend(own, own), rows),
            Wait(),
            per_rank(look, rows, rows_seen(counts, causal=causal)),
        )
        steps = (per_rank(parts.embed, rows), Repeat(shape.num_layers, layer), *answered(shape, len(ranges)))
        return Schedule(steps, (float(parts.all_weights),) * len(ranges))

    def _send_means(self, tag: Tag, x_BTD: Tensor) -> PendingRows:
        """Send this slice's means to all that may see them, and do not wait for theirs."""
        with self._timeline.span("encode", tag.layer):
            means_BSD = segment_means(x_BTD, self._segments[self._rank])
            rows_SV = means_BSD.transpose(0, 1).flatten(1)  # all that is known of a segment travels or is lost together
        with self._timeline.span("send", tag.layer):
            return self._exchange.start(tag, rows_SV)

    def _means_keys(self, layer: int, rows: Rows, batch: int) -> list[KeyValues]:
        """Return keys and values of the peers' means, in order of rank, or nothing where none came."""
        if rows.absent_R is not None and bool(rows.absent_R.all()):
            return []
        block = self._model.blocks[layer]
        means_BRD = rows.rows_RV.view(-1, batch, self._model.shape.width).transpose(0, 1)
        k_BHRd, v_BHRd = block.key_value(block.attention_input(means_BRD), self._mean_positions)
        return [KeyValues(k_BHRd, v_BHRd, hide_absent(self._log_counts, rows.absent_R))]

    def _answer(self, request: Request, x_BTD: Tensor) -> Tensor | None:
        """Bring the answer's row to rank 0 and read it."""
        shape = self._model.shape
        with self._timeline.span("wait" if self._rank == 0 else "send"):
            tag = Tag(request.index, shape.num_layers, "answer")
            owner = answer_rank(shape, len(self._ranges))
            row_BD = bring_answer(self._collectives, tag, x_BTD[:, shape.answer_token], owner)
        if row_BD is None:
            return None
        with self._timeline.span("head"):
            return self._model.head(row_BD)


def _segments_per_rank(shape: ModelShape, config: PrismConfig, ranges: Sequence[range]) -> list[tuple[range, ...]]:
    """Cut every rank's rows, class tokens included; ValueError if there are too few."""
    return [
        cut_segments(rows, count_segments(rows, config.num_segments, config.compression_ratio))
        for rows in rows_per_rank(shape, ranges)
    ]
