"""Which rows of x each rank holds when tokens are split, and how the answer's row gets to the terminal.

    rank 0: [class tokens | content of range 0]    rank r: [content of range r]
    answer: the class token, on rank 0; or in a causal model the last token, on the last rank ──row of x──► rank 0

The row travels before the head, in fp32: 3 KB of GPT-2's x instead of 200 KB of its logits. Shared by the strategies
that keep each rank's tokens where they are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from astra.collectives import Collectives
from astra.models import ModelAdapter, ModelShape
from astra.traffic import PlannedMessage
from astra.transport import Tag
from astra.wire import decode, encode, encoded_size

__all__ = ["answer_rank", "bring_answer", "content_rows", "embed_slice", "plan_answer", "rows_per_rank"]


def rows_per_rank(shape: ModelShape, ranges: Sequence[range]) -> list[int]:
    """Count each rank's tokens; rank 0 also has the class tokens."""
    return [len(tokens) + (shape.num_class_tokens if rank == 0 else 0) for rank, tokens in enumerate(ranges)]


def content_rows(shape: ModelShape, x_BTD: Tensor, rank: int) -> Tensor:
    """Return the rows of this rank's content tokens, on rank 0 without the class tokens before them."""
    return x_BTD[:, shape.num_class_tokens :] if rank == 0 else x_BTD


def answer_rank(shape: ModelShape, world_size: int) -> int:
    """Return the rank whose tokens include the one that the head reads."""
    return world_size - 1 if shape.causal else 0


def embed_slice(model: ModelAdapter, inputs: Tensor, tokens: range, first_row: int, rank: int) -> Tensor:
    """Return x_BTD of this rank's tokens, on rank 0 behind the class tokens."""
    content_BTD = model.embed_content(inputs, tokens, first_row)
    if rank != 0 or not model.shape.num_class_tokens:
        return content_BTD
    return torch.cat((model.embed_class(len(content_BTD)), content_BTD), dim=1)


def bring_answer(collectives: Collectives, tag: Tag, row_BD: Tensor, owner: int) -> Tensor | None:
    """Return the owner's row on rank 0, and None elsewhere; other ranks' rows only tell the size."""
    if collectives.rank == owner != 0:
        collectives.transport.send(0, tag, encode(row_BD, "fp32"))
    if collectives.rank != 0:
        return None
    if owner == 0:
        return row_BD
    return decode(collectives.transport.receive(owner, tag, collectives.timeout_s), "fp32", *row_BD.shape)


def plan_answer(shape: ModelShape, owner: int) -> list[PlannedMessage]:
    """Plan the message of `bring_answer` for batch 1. Pure."""
    return [PlannedMessage(owner, 0, encoded_size("fp32", 1, shape.width))] if owner else []
