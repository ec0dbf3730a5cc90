"""The whole model on rank 0: what every other strategy is compared with.

Runs the same embedding, blocks, attention and head as the distributed strategies, so that whatever makes them faster
makes this one faster too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from astra.attention import attend
from astra.config import SingleConfig
from astra.models import ModelShape
from astra.partial_attention import KeyValues
from astra.planning.schedule import Compute, Schedule
from astra.planning.work import LayerWork, alone
from astra.strategies.protocol import RankContext, Request
from astra.traffic import PlannedMessage

__all__ = ["SingleStrategy"]


class SingleStrategy:
    """Rank 0 computes, the others idle."""

    def __init__(self, context: RankContext, config: SingleConfig):
        self._model = context.model
        self._rank = context.collectives.rank
        self._timeline = context.timeline
        self._keep = context.keep
        self._keep_output = context.keep_output

    @torch.inference_mode()
    def forward(self, request: Request) -> Tensor | None:
        """Answer alone on rank 0."""
        if self._rank != 0:
            return None
        model, span = self._model, self._timeline.span
        with span("embed"):
            x_BTD = model.embed(request.inputs)
        for layer, block in enumerate(model.blocks):
            with span("rest", layer):
                u_BTD = block.attention_input(x_BTD)
                q_BHTd, (k_BHTd, v_BHTd) = block.query(u_BTD), block.key_value(u_BTD)
                self._keep(layer, KeyValues(k_BHTd, v_BHTd))
            with span("attention", layer):
                context_BTD = attend(q_BHTd, k_BHTd, v_BHTd, causal=model.shape.causal)
            with span("rest", layer):
                x_BTD = block.finish(x_BTD, context_BTD)
        if self._keep_output:
            shape = model.shape
            self._keep_output(range(shape.num_content_tokens), x_BTD[:, shape.num_class_tokens :])
        with span("head"):
            return model.head(x_BTD[:, model.shape.answer_token])

    @staticmethod
    def partition(shape: ModelShape, config: SingleConfig, weights: Sequence[float]) -> tuple[range, ...]:
        """Give all tokens to rank 0."""
        return (range(shape.num_content_tokens), *(range(0) for _ in weights[1:]))

    @staticmethod
    def plan(
        shape: ModelShape, config: SingleConfig, ranges: Sequence[range], weights: Sequence[float]
    ) -> list[PlannedMessage]:
        """Send nothing."""
        return []

    @staticmethod
    def schedule(
        shape: ModelShape, config: SingleConfig, ranges: Sequence[range], weights: Sequence[float]
    ) -> Schedule:
        """Compute on rank 0."""
        parts, tokens, world_size = LayerWork(shape), shape.num_tokens, len(ranges)
        work = parts.embed(tokens) + parts.layer(tokens, tokens) * shape.num_layers + parts.head()
        held = (float(parts.all_weights), *(0.0 for _ in ranges[1:]))
        return Schedule((Compute(alone(0, world_size, work)),), held)
