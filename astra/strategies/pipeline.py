"""Pipeline: each rank runs some consecutive layers on all tokens and hands x to the next rank.

    rank 0: embed, layers 0 … a   ──x──►  rank 1: layers a + 1 … b  ──x──►  …  ──the answer's row──►  rank 0: head

    request 0   [rank 0][rank 1][rank 2]
    request 1           [rank 0][rank 1][rank 2]          `in_flight` requests are under way at once

Source: EdgeShard (Zhang et al., arXiv 2405.14371), pipeline without bubbles. Layers are dealt by weight; the paper
finds the cut by dynamic programming over measured times. One request alone gains nothing, as only one rank works at a
time: what is gained is throughput, which `forward_many` is for, and memory. Answers equal `single` with `wire: fp32`.

Traffic: T·D once for each stage boundary, and one row of D from the last rank to rank 0, which has the head.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from astra.attention import attend
from astra.models import ModelShape
from astra.partial_attention import KeyValues
from astra.partition import split
from astra.planning.schedule import Compute, Schedule, Send, Step, Wait
from astra.planning.work import NOTHING, LayerWork, alone
from astra.slices import bring_answer, plan_answer
from astra.strategies.protocol import RankContext, Request
from astra.strategy_config import PipelineConfig
from astra.traffic import PlannedMessage
from astra.transport import Tag
from astra.wire import decode, encode, encoded_size

__all__ = ["PipelineStrategy"]


class PipelineStrategy:
    """Every rank is one stage."""

    def __init__(self, context: RankContext, config: PipelineConfig):
        self._model = context.model
        self._collectives = context.collectives
        self._timeline = context.timeline
        self._keep = context.keep
        self._keep_output = context.keep_output
        self._wire = config.wire
        self._rank = context.collectives.rank
        self._last = context.collectives.world_size - 1
        self._layers = split(context.model.shape.num_layers, context.weights)[self._rank]
        self.in_flight = config.in_flight

    @torch.inference_mode()
    def forward(self, request: Request) -> Tensor | None:
        """Run this rank's stage; rank 0 then waits for the answer."""
        row_BD = self._run_stage(request)
        return self._finish(request.index, row_BD)

    @torch.inference_mode()
    def forward_many(self, requests: Iterable[Request]) -> Iterator[Tensor | None]:
        """Do as `forward` for each request in order, with up to `in_flight` of them under way; rank 0 yields logits."""
        under_way: deque[tuple[int, Tensor]] = deque()
        for request in requests:
            if self._rank == 0 and len(under_way) == self.in_flight:
                yield self._finish(*under_way.popleft())
            self._timeline.begin_request(request.index)
            row_BD = self._run_stage(request)
            if self._rank == 0:
                under_way.append((request.index, row_BD))
            else:
                yield self._finish(request.index, row_BD)
        while under_way:
            yield self._finish(*under_way.popleft())

    @staticmethod
    def partition(shape: ModelShape, config: PipelineConfig, weights: Sequence[float]) -> tuple[range, ...]:
        """Give the input to rank 0 alone.

        Raises:
            ValueError: There are fewer layers than ranks.
        """
        if len(weights) > shape.num_layers:
            raise ValueError(
                f"world size must be at most the model's {shape.num_layers} layers, got {len(weights)}; "
                "use fewer devices"
            )
        return (range(shape.num_content_tokens), *(range(0) for _ in weights[1:]))

    @staticmethod
    def plan(
        shape: ModelShape, config: PipelineConfig, ranges: Sequence[range], weights: Sequence[float]
    ) -> list[PlannedMessage]:
        """Hand x over each boundary, then the answer's row back."""
        size = encoded_size(config.wire, shape.num_tokens, shape.width)
        hops = [PlannedMessage(rank, rank + 1, size) for rank in range(len(ranges) - 1)]
        return hops + plan_answer(shape, len(ranges) - 1)

    @staticmethod
    def schedule(
        shape: ModelShape, config: PipelineConfig, ranges: Sequence[range], weights: Sequence[float]
    ) -> Schedule:
        """Run stage after stage, each when x has come."""
        parts, tokens, world_size = LayerWork(shape), shape.num_tokens, len(ranges)
        stages = split(shape.num_layers, weights)
        size = encoded_size(config.wire, tokens, shape.width)
        steps: list[Step] = [Compute(alone(0, world_size, parts.embed(tokens)))]
        for rank, layers in enumerate(stages):
            work = parts.layer(tokens, tokens) * len(layers)
            work += parts.decode(config.wire, tokens) if rank else NOTHING
            if rank == world_size - 1:
                steps.append(Compute(alone(rank, world_size, work)))
            else:
                steps.append(Compute(alone(rank, world_size, work + parts.encode(config.wire, tokens))))
                steps += [Send((PlannedMessage(rank, rank + 1, size),)), Wait()]
        if world_size > 1:
            steps += [Send(tuple(plan_answer(shape, world_size - 1))), Wait()]
        steps.append(Compute(alone(0, world_size, parts.head())))
        ends = parts.embedding_weights + parts.head_weights
        held = [float(len(layers) * shape.layer_weights + (0 if rank else ends)) for rank, layers in enumerate(stages)]
        return Schedule(tuple(steps), tuple(held))

    def _run_stage(self, request: Request) -> Tensor:
        """Take x, run this rank's layers and hand x on; return the answer's row as far as it has come."""
        model, span = self._model, self._timeline.span
        x_BTD = self._receive(request)
        for layer in self._layers:
            block = model.blocks[layer]
            with span("rest", layer):
                u_BTD = block.attention_input(x_BTD)
                q_BHTd, (k_BHTd, v_BHTd) = block.query(u_BTD), block.key_value(u_BTD)
                self._keep(layer, KeyValues(k_BHTd, v_BHTd))
            with span("attention", layer):
                context_BTD = attend(q_BHTd, k_BHTd, v_BHTd, causal=model.shape.causal)
            with span("rest", layer):
                x_BTD = block.finish(x_BTD, context_BTD)
        if self._rank != self._last:
            with span("encode", self._layers.stop - 1):
                payload = encode(x_BTD.flatten(0, 1), self._wire)
            with span("send", self._layers.stop - 1):
                tag = Tag(request.index, self._layers.stop, "stage")
                self._collectives.transport.send(self._rank + 1, tag, payload)
        elif self._keep_output:
            self._keep_output(range(model.shape.num_content_tokens), x_BTD[:, model.shape.num_class_tokens :])
        return x_BTD[:, model.shape.answer_token]

    def _receive(self, request: Request) -> Tensor:
        """Embed the input on rank 0; take x from the rank before elsewhere."""
        shape, span = self._model.shape, self._timeline.span
        if self._rank == 0:
            with span("embed"):
                return self._model.embed(request.inputs)
        with span("wait", self._layers.start):
            tag = Tag(request.index, self._layers.start, "stage")
            payload = self._collectives.transport.receive(self._rank - 1, tag, self._collectives.timeout_s)
        with span("encode", self._layers.start):
            batch = len(payload) // encoded_size(self._wire, shape.num_tokens, shape.width)
            return decode(payload, self._wire, batch * shape.num_tokens, shape.width).view(batch, -1, shape.width)

    def _finish(self, index: int, row_BD: Tensor) -> Tensor | None:
        """Bring the answer's row to rank 0 and read it there."""
        with self._timeline.span("wait" if self._rank == 0 else "send"):
            tag = Tag(index, self._model.shape.num_layers, "answer")
            answer_BD = bring_answer(self._collectives, tag, row_BD, self._last)
        if answer_BD is None:
            return None
        with self._timeline.span("head"):
            return self._model.head(answer_BD)
