"""Which content tokens each rank gets, so that all have equal work: each attends from its own to all they see. Pure.

    no causal mask:  in proportion to the weights
    causal mask:     later tokens see more keys, so later ranks get fewer tokens

Prices are those of one core of an AMD EPYC with torch 2.13 on ViT-Base and GPT-2: ranks must come to the same slices,
so they cannot be measured on each. Not for strategies whose ranks see the same number of keys whatever their place.
"""

from collections.abc import Sequence

from astra.models import ModelShape
from astra.partition import split, split_by_cost
from astra.planning.tables import expected_keys
from astra.remote_tables import READ_PRICE
from astra.strategy_config import QuantisedSection

__all__ = ["split_tokens"]

ATTENTION_PRICE = 1.6
"""What an operation of attention takes over one of a product with weights: 61 and 100 GFLOPS."""


def split_tokens(
    shape: ModelShape, weights: Sequence[float], quantised: QuantisedSection | None = None
) -> tuple[range, ...]:
    """Deal the content tokens; `quantised` says how remote tokens are, None that they are exact and at hand.

    Raises:
        ValueError: As `split`.
    """
    if not shape.causal:
        return split(shape.num_content_tokens, weights)
    pair = ATTENTION_PRICE * 2 * shape.num_heads * shape.head_width

    def cost(tokens: range) -> float:
        keys, work = tokens.stop, float(shape.layer_weights)
        if quantised is None:
            return len(tokens) * (work + pair * keys)
        if tokens.stop < shape.num_content_tokens:  # nobody looks at the last rank's
            work += quantised.num_codewords * quantised.quantised_width(shape.width, shape.kv_width)
        distinct = expected_keys(shape, quantised.num_groups, quantised.num_codewords, tokens.start)
        values = 2 * shape.kv_width * (quantised.num_groups if quantised.site == "input" else 1)
        return len(tokens) * (work + pair * (len(tokens) + distinct)) + distinct * values * READ_PRICE["fp16"]

    return split_by_cost(shape.num_content_tokens, weights, cost)
