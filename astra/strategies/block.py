"""Block parallelism: layers cut into narrow sub-blocks that never meet, but for a few whole layers in between.

    decoupled layer   x_BTD = [columns of part 0 | part 1 | … ]; each part has its own norms, heads and hidden units of
                      width D / num_blocks and sees no other part: no exchange
    coupled layer     all_gather: columns ═ all-gather ═► x ──whole layer, on every rank──► own columns
                      sequence:   columns ═ all-gather ═► x ──layer for own tokens──► ═ all-to-all ═► own columns
    after the last    every rank's columns of the answer's row ──► rank 0: head

Source: DeTransformer (Wei et al., Communication-Efficient Model Parallelism for Distributed In-Situ Transformer
Inference, DATE 2024): sub-blocks of a decoupled layer run on different devices, coupled layers of the original model
keep accuracy. A decoupled model has weights of its own, which must be trained. Here a sub-block takes diagonal blocks
of the original matrices: speed and traffic are true, and answers are those of an untrained decoupled model, which they
equal on one device and on many; they are not those of `single`. Ours, where the paper was not at hand: coupled layers
sit in the middle of equal runs of layers, and sub-blocks are dealt to ranks by weight.

Every rank embeds all tokens, so every rank needs the whole input. Traffic of a coupled layer: from each rank its T·D/N
columns to N - 1 peers; with `sequence` also T/N rows of each peer's columns back. Then D/N values to rank 0.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from astra.attention import attend, positions_of
from astra.collectives import PendingGather
from astra.models import Block, ModelShape
from astra.partition import split
from astra.planning.schedule import Broadcast, Compute, Schedule, Send, Step, Wait, per_rank
from astra.planning.work import LayerWork, Work, alone
from astra.slices import rows_per_rank
from astra.strategies.protocol import KeepOutput, RankContext, Request
from astra.strategy_config import BlockConfig
from astra.traffic import PlannedMessage, all_to_all
from astra.transport import Tag
from astra.wire import decode, encode, encoded_size

__all__ = ["BlockStrategy", "coupled_layers"]


class BlockStrategy:
    """Every rank runs its sub-blocks of the decoupled layers on all tokens."""

    def __init__(self, context: RankContext, config: BlockConfig):
        self._model = context.model
        self._collectives = context.collectives
        self._timeline = context.timeline
        self._keep_output = context.keep_output
        self._config = config
        self._rank = context.collectives.rank
        shape = context.model.shape
        self._columns = _columns_per_rank(shape, config, context.weights)
        self._widths = [len(columns) for columns in self._columns]
        own_parts = split(config.num_blocks, context.weights)[self._rank]
        coupled = coupled_layers(shape.num_layers, config.num_coupled)
        self._sub_blocks: list[list[Block] | None] = [
            None if layer in coupled else [block.sub_block(part, config.num_blocks) for part in own_parts]
            for layer, block in enumerate(context.model.blocks)
        ]
        self._rows = _rows_per_rank(shape, context.weights)

    @torch.inference_mode()
    def forward(self, request: Request) -> Tensor | None:
        """Run all layers on this rank's columns; rank 0 puts the answer's row together."""
        with self._timeline.span("embed"):
            own = self._columns[self._rank]
            x_BTW = self._model.embed(request.inputs)[..., own.start : own.stop]
        for layer, sub_blocks in enumerate(self._sub_blocks):
            if sub_blocks is None:
                x_BTW = self._run_coupled(Tag(request.index, layer, "columns"), x_BTW)
            else:
                x_BTW = self._run_decoupled(layer, sub_blocks, x_BTW)
        if self._keep_output:
            self._report_output(request, x_BTW, self._keep_output)
        return self._answer(request, x_BTW[:, self._model.shape.answer_token])

    @staticmethod
    def partition(shape: ModelShape, config: BlockConfig, weights: Sequence[float]) -> tuple[range, ...]:
        """Give every rank all tokens."""
        return (range(shape.num_content_tokens),) * len(weights)

    @staticmethod
    def plan(
        shape: ModelShape, config: BlockConfig, ranges: Sequence[range], weights: Sequence[float]
    ) -> list[PlannedMessage]:
        """Gather all columns at every coupled layer, send rows back if it is split, and bring the answer together.

        Raises:
            ValueError: The sub-blocks do not divide the model, or are fewer than the ranks.
        """
        widths = [len(columns) for columns in _columns_per_rank(shape, config, weights)]
        gathered = [encoded_size(config.wire, shape.num_tokens, width) for width in widths]
        messages = all_to_all(gathered, count=len(coupled_layers(shape.num_layers, config.num_coupled)))
        if config.exchange == "sequence":
            messages += _rows_back(config, _rows_per_rank(shape, weights), widths) * config.num_coupled
        return messages + _answers(widths)

    @staticmethod
    def schedule(shape: ModelShape, config: BlockConfig, ranges: Sequence[range], weights: Sequence[float]) -> Schedule:
        """Run narrow layers without a word, and whole ones around exchanges."""
        parts, world_size, causal = LayerWork(shape), len(weights), shape.causal
        widths = [len(columns) for columns in _columns_per_rank(shape, config, weights)]
        tokens, is_split = shape.num_tokens, config.exchange == "sequence"
        rows = _rows_per_rank(shape, weights) if is_split else [range(tokens)] * world_size

        def narrow(width: int) -> Work:  # blocks on the diagonal: as high as they are wide
            share = width / shape.width / config.num_blocks
            products = parts.query(tokens, share) + parts.key_value(tokens, share) + parts.output(tokens, share)
            return products + parts.mlp(tokens, share) + parts.attend(tokens, tokens, width / shape.width)

        def whole(own: range) -> Work:
            keys = own.stop if causal else tokens
            return parts.decode(config.wire, tokens) + parts.layer(len(own), keys)

        coupled: list[Step] = [
            per_rank(lambda width: parts.encode(config.wire, tokens, width), widths),
            Broadcast(tuple(encoded_size(config.wire, tokens, width) for width in widths)),
            Wait(),
            Compute(tuple(map(whole, rows))),
        ]
        if is_split:
            coupled += [
                per_rank(lambda own: parts.encode(config.wire, own), [len(own) for own in rows]),
                Send(tuple(_rows_back(config, rows, widths))),
                Wait(),
                per_rank(lambda width: parts.decode(config.wire, tokens, width), widths),
            ]
        steps: list[Step] = [per_rank(lambda _: parts.embed(tokens), widths)]
        for layer in range(shape.num_layers):
            is_coupled = layer in coupled_layers(shape.num_layers, config.num_coupled)
            steps += coupled if is_coupled else [per_rank(narrow, widths)]
        steps += [Send(tuple(_answers(widths))), Wait(), Compute(alone(0, world_size, parts.head()))]
        return Schedule(tuple(steps), parts.sharded([_share_of_layers(shape, config, width) for width in widths]))

    def _run_decoupled(self, layer: int, sub_blocks: Sequence[Block], x_BTW: Tensor) -> Tensor:
        """Run this rank's sub-blocks side by side."""
        outputs = []
        causal, span = self._model.shape.causal, self._timeline.span
        for block, x_BTw in zip(sub_blocks, x_BTW.chunk(len(sub_blocks), dim=-1), strict=True):
            with span("rest", layer):
                u_BTw = block.attention_input(x_BTw)
                q_BHTd, (k_BHTd, v_BHTd) = block.query(u_BTw), block.key_value(u_BTw)
            with span("attention", layer):
                context_BTw = attend(q_BHTd, k_BHTd, v_BHTd, causal=causal)
            with span("rest", layer):
                outputs.append(block.finish(x_BTw, context_BTw))
        with span("rest", layer):
            return torch.cat(outputs, dim=-1)

    def _run_coupled(self, tag: Tag, x_BTW: Tensor) -> Tensor:
        """Gather x, run the whole layer for all tokens or for own ones, and return own columns of all tokens."""
        own, span = self._columns[self._rank], self._timeline.span
        payload = self._encode(tag.layer, x_BTW)
        with span("send", tag.layer):
            pending = self._collectives.start_all_gather(tag, payload)
        x_BTD = self._join(tag.layer, pending, x_BTW, [x_BTW.shape[1]] * len(self._widths), self._widths, dim=2)
        if self._config.exchange == "all_gather":
            return self._run_rows(tag.layer, x_BTD, range(x_BTD.shape[1]))[..., own.start : own.stop]
        y_BRD = self._run_rows(tag.layer, x_BTD, self._rows[self._rank])
        slices = {
            peer: self._encode(tag.layer, y_BRD[..., columns.start : columns.stop])
            for peer, columns in enumerate(self._columns)
            if peer != self._rank
        }
        with span("send", tag.layer):
            pending = self._collectives.start_all_to_all(tag._replace(phase="rows"), slices)
        own_BRW, num_rows = y_BRD[..., own.start : own.stop], [len(rows) for rows in self._rows]
        return self._join(tag.layer, pending, own_BRW, num_rows, [len(own)] * len(num_rows), dim=1)

    def _run_rows(self, layer: int, x_BTD: Tensor, rows: range) -> Tensor:
        """Run a whole layer for some rows of x, which look at all rows, or at those up to themselves if causal."""
        block, causal, span = self._model.blocks[layer], self._model.shape.causal, self._timeline.span
        seen = range(rows.stop if causal else x_BTD.shape[1])
        with span("rest", layer):
            u_BTD = block.attention_input(x_BTD[:, : len(seen)])
            q_BHRd = block.query(u_BTD[:, rows.start : rows.stop], positions_of([rows]))
            k_BHTd, v_BHTd = block.key_value(u_BTD, positions_of([seen]))
        with span("attention", layer):
            context_BRD = attend(q_BHRd, k_BHTd, v_BHTd, causal=causal)
        with span("rest", layer):
            return block.finish(x_BTD[:, rows.start : rows.stop], context_BRD)

    def _encode(self, layer: int, x_BTW: Tensor) -> bytes:
        with self._timeline.span("encode", layer):
            return encode(x_BTW.flatten(0, 1), self._config.wire)

    def _join(
        self, layer: int, pending: PendingGather, own: Tensor, num_rows: list[int], widths: list[int], *, dim: int
    ) -> Tensor:
        """Put every rank's piece of x side by side, this rank's as it is; rank r's is [B, num_rows[r], widths[r]]."""
        with self._timeline.span("wait", layer):
            payloads = pending.wait()
        with self._timeline.span("encode", layer):
            batch = len(own)
            pieces = [
                own
                if rank == self._rank
                else decode(payloads[rank], self._config.wire, batch * rows, width).view(batch, rows, width)
                for rank, (rows, width) in enumerate(zip(num_rows, widths, strict=True))
            ]
            return torch.cat(pieces, dim=dim)

    def _report_output(self, request: Request, x_BTW: Tensor, keep_output: KeepOutput) -> None:
        """Bring the columns of all rows to rank 0 and report them there."""
        shape, (batch, num_rows, _) = self._model.shape, x_BTW.shape
        payloads = self._collectives.gather(
            Tag(request.index, shape.num_layers, "output"), encode(x_BTW.flatten(0, 1), "fp32")
        )
        if payloads is None:
            return
        others = [
            decode(payload, "fp32", batch * num_rows, self._widths[peer]).view(batch, num_rows, -1)
            for peer, payload in payloads.items()
        ]
        x_BTD = torch.cat([x_BTW, *others], dim=-1)
        keep_output(range(shape.num_content_tokens), x_BTD[:, shape.num_class_tokens :])

    def _answer(self, request: Request, row_BW: Tensor) -> Tensor | None:
        """Bring the columns of the answer's row to rank 0 and read it."""
        tag = Tag(request.index, self._model.shape.num_layers, "answer")
        with self._timeline.span("wait" if self._rank == 0 else "send"):
            payloads = self._collectives.gather(tag, encode(row_BW, "fp32"))
        if payloads is None:
            return None
        with self._timeline.span("head"):
            others = [decode(payload, "fp32", len(row_BW), self._widths[peer]) for peer, payload in payloads.items()]
            return self._model.head(torch.cat([row_BW, *others], dim=-1))


def coupled_layers(num_layers: int, num_coupled: int) -> list[int]:
    """Return which layers stay whole: the middle one of each of `num_coupled` equal runs of layers. Pure.

    Raises:
        ValueError: There are fewer layers than that.
    """
    if num_coupled > num_layers:
        raise ValueError(f"num_coupled must be at most the model's {num_layers} layers, got {num_coupled}; use fewer")
    return [(run.start + run.stop) // 2 for run in split(num_layers, [1.0] * num_coupled)]


def _share_of_layers(shape: ModelShape, config: BlockConfig, width: int) -> float:
    """Return which share of all layers' weights a rank of so many columns needs: blocks on the diagonal, whole ones."""
    decoupled = (shape.num_layers - config.num_coupled) * width / shape.width / config.num_blocks
    return (config.num_coupled + decoupled) / shape.num_layers


def _columns_per_rank(shape: ModelShape, config: BlockConfig, weights: Sequence[float]) -> list[range]:
    """Return the columns of x that each rank's sub-blocks make up; ValueError if they cannot be dealt."""
    parts = math.gcd(shape.num_heads, shape.num_kv_heads, shape.mlp_width, shape.width)
    valid = [count for count in range(1, parts + 1) if parts % count == 0]
    if config.num_blocks not in valid:
        raise ValueError(
            f"num_blocks must divide the model's {shape.num_heads} heads, {shape.num_kv_heads} key/value heads and "
            f"{shape.mlp_width} hidden units, got {config.num_blocks}; use {', '.join(map(str, valid))}"
        )
    if config.num_blocks < len(weights):
        raise ValueError(
            f"num_blocks must be at least one per device, got {config.num_blocks} for {len(weights)}; "
            f"of {', '.join(map(str, valid))} choose one that is"
        )
    width = shape.width // config.num_blocks
    return [range(own.start * width, own.stop * width) for own in split(config.num_blocks, weights)]


def _rows_per_rank(shape: ModelShape, weights: Sequence[float]) -> list[range]:
    """Return the rows of x that each rank runs a split coupled layer for; rank 0's begin with the class tokens."""
    counts = rows_per_rank(shape, split(shape.num_content_tokens, weights))
    return [range(sum(counts[:rank]), sum(counts[: rank + 1])) for rank in range(len(counts))]


def _rows_back(config: BlockConfig, rows: Sequence[range], widths: Sequence[int]) -> list[PlannedMessage]:
    """Send each rank its columns of the rows that the others have run a split coupled layer for."""
    return [
        PlannedMessage(source, destination, encoded_size(config.wire, len(own), width))
        for source, own in enumerate(rows)
        for destination, width in enumerate(widths)
        if source != destination
    ]


def _answers(widths: Sequence[int]) -> list[PlannedMessage]:
    """Bring every rank's columns of the answer's row to rank 0."""
    return [PlannedMessage(rank, 0, encoded_size("fp32", 1, width)) for rank, width in enumerate(widths) if rank]
