"""A rank's share of every layer's heads and hidden units, and a layer finished by adding up what the ranks make of it.

    context of own heads ──own columns──► part ═ add up ═► bias, residual ──► a
    a ──norm──► h ──own hidden units──► part ═ add up ═► bias, residual ──► x

Shared by the strategies and decoders that deal heads and hidden units; how parts are added up is theirs.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from astra.models import Block, BlockShard, ModelAdapter, ModelShape
from astra.partition import split
from astra.timeline import Timeline
from astra.transport import Tag

__all__ = ["add_bias", "finish_layer", "own_shards", "shares"]


def own_shards(model: ModelAdapter, rank: int, weights: Sequence[float]) -> list[BlockShard]:
    """Return this rank's heads and hidden units of every layer, dealt in proportion to the weights."""
    heads = split(model.shape.num_heads, weights)[rank]
    hidden = split(model.shape.mlp_width, weights)[rank]
    return [block.shard(heads, hidden) for block in model.blocks]


def shares(shape: ModelShape, weights: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return which share of the heads, and which of the hidden units, each rank has. Pure."""
    heads, hidden = split(shape.num_heads, weights), split(shape.mlp_width, weights)
    return [len(own) / shape.num_heads for own in heads], [len(own) / shape.mlp_width for own in hidden]


def finish_layer(
    block: Block,
    shard: BlockShard,
    x_BTD: Tensor,
    context_BTE: Tensor,
    *,
    add_up: Callable[[Tag, Tensor], Tensor],
    timeline: Timeline,
    tag: Tag,
) -> Tensor:
    """Return a layer's output from its input, which all ranks have, and the context of this rank's heads.

    `add_up` returns the sum over all ranks of what it is given, first for the attention and then for the MLP; `tag`
    says of which request and layer.
    """
    with timeline.span("rest", tag.layer):
        part_BTD = shard.output(context_BTE)
    out_BTD = add_up(tag._replace(phase="attention"), part_BTD)
    with timeline.span("rest", tag.layer):
        a_BTD = block.after_attention(x_BTD, add_bias(out_BTD, block.output_bias))
        part_BTD = shard.mlp(block.mlp_input(a_BTD))
    m_BTD = add_up(tag._replace(phase="mlp"), part_BTD)
    with timeline.span("rest", tag.layer):
        return block.after_mlp(a_BTD, add_bias(m_BTD, block.mlp_bias))


def add_bias(sum_BTD: Tensor, bias_D: Tensor | None) -> Tensor:
    """Add to a sum what every rank left out of its part, once."""
    return sum_BTD if bias_D is None else sum_BTD + bias_D
