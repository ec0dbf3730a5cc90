"""Sequence parallelism: each rank keeps its slice of tokens, and all-gathers the layer's input in every layer.

Source: Voltage (Hu and Li, ICDCS 2024), position-wise partition. Each rank projects the keys and values of all tokens
itself and attends for its own. With `wire: fp32` the answer equals `single`; narrower wires quantise what the peers
see of a slice, never the slice itself. The class token belongs to rank 0, in front of its slice.

Traffic of one layer: from each rank its (T/N) rows of D to N − 1 peers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from astra.attention import attend, prepend_remote
from astra.config import SequenceConfig
from astra.models import ModelShape
from astra.partition import split
from astra.strategies.protocol import RankContext, Request
from astra.traffic import PlannedMessage, all_to_all
from astra.transport import Tag
from astra.wire import decode, encode, encoded_size

__all__ = ["SequenceStrategy"]


class SequenceStrategy:
    """Every rank runs every layer on its own tokens."""

    def __init__(self, context: RankContext, config: SequenceConfig):
        self._model = context.model
        self._collectives = context.collectives
        self._timeline = context.timeline
        self._wire = config.wire
        self._own_tokens = context.ranges[context.collectives.rank]
        self._num_rows = _rows_per_rank(context.model.shape, context.ranges)

    @torch.inference_mode()
    def forward(self, request: Request) -> Tensor | None:
        """Run all layers on this rank's tokens; rank 0 reads the answer off its class token."""
        model, span = self._model, self._timeline.span
        with span("embed"):
            x_BTD = self._embed(request)
        for layer, block in enumerate(model.blocks):
            with span("encode", layer):
                payload = encode(x_BTD.flatten(0, 1), self._wire)
            with span("send", layer):
                pending = self._collectives.start_all_gather(Tag(request.index, layer, "slice"), payload)
            with span("rest", layer):  # while the slices are in flight
                u_BTD = block.attention_input(x_BTD)
                q_BHTd, (k_BHTd, v_BHTd) = block.query(u_BTD), block.key_value(u_BTD)
            with span("wait", layer):
                payloads = pending.wait()
            with span("attention", layer):
                if payloads:
                    remote_k, remote_v = block.key_value(block.attention_input(self._decode(payloads, len(x_BTD))))
                    k_BHTd, v_BHTd = prepend_remote(remote_k, k_BHTd), prepend_remote(remote_v, v_BHTd)
                context_BTD = attend(q_BHTd, k_BHTd, v_BHTd)
            with span("rest", layer):
                x_BTD = block.finish(x_BTD, context_BTD)
        if self._collectives.rank != 0:
            return None
        with span("head"):
            return model.head(x_BTD[:, 0])

    @staticmethod
    def partition(shape: ModelShape, weights: Sequence[float]) -> tuple[range, ...]:
        """Split the content tokens by weight."""
        return split(shape.num_content_tokens, weights)

    @staticmethod
    def plan(
        shape: ModelShape, config: SequenceConfig, ranges: Sequence[range], weights: Sequence[float]
    ) -> list[PlannedMessage]:
        """Send each rank's slice to every peer in every layer."""
        sizes = [encoded_size(config.wire, rows, shape.width) for rows in _rows_per_rank(shape, ranges)]
        return all_to_all(sizes, count=shape.num_layers)

    def _embed(self, request: Request) -> Tensor:
        """Embed this rank's tokens, on rank 0 behind the class token."""
        content_BTD = self._model.embed_content(request.inputs, self._own_tokens, request.first_row)
        if self._collectives.rank != 0:
            return content_BTD
        return torch.cat((self._model.embed_class(request.inputs.shape[0]), content_BTD), dim=1)

    def _decode(self, payloads: dict[int, memoryview], batch: int) -> Tensor:
        """Return the peers' rows, x_BRD, in order of rank."""
        width = self._model.shape.width
        slices = [
            decode(payload, self._wire, batch * self._num_rows[peer], width).view(batch, -1, width)
            for peer, payload in payloads.items()
        ]
        return torch.cat(slices, dim=1)


def _rows_per_rank(shape: ModelShape, ranges: Sequence[range]) -> list[int]:
    """Count each rank's tokens; rank 0 also has the class token."""
    return [len(tokens) + (shape.num_class_tokens if rank == 0 else 0) for rank, tokens in enumerate(ranges)]
