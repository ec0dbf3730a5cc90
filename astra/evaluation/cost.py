"""What a strategy's accuracy is bought with: bits that a token costs, and how much attention stays exact. Pure.

    bits of a token over all layers     ASTRA, G = 1, K = 1024, 12 layers: 120
    compression ratio                   32-bit rows of the model's width over that: 2,457.6 for ViT-Base
    FPAR                                Σ n_k² / N²: share of token pairs that attend to one another exactly

Only for strategies that send rows of tokens to every peer; others have no bits of a token.

Source: ASTRA, arXiv 2505.19342, for all three.
"""

from collections.abc import Sequence

from astra.models import ModelShape
from astra.segments import count_segments
from astra.slices import rows_per_rank
from astra.strategy_config import AnyStrategy, AstraConfig, PrismConfig, SequenceConfig
from astra.wire import encoded_size

__all__ = ["bits_per_token", "compression_ratio", "fpar"]

BITS_OF_FP32 = 32


def bits_per_token(
    strategy: AnyStrategy, shape: ModelShape, ranges: Sequence[range], coded_share: float = 1.0
) -> float | None:
    """Return the bits that one token costs on one link over all layers; the mean over the tokens of all ranks.

    `coded_share` is what entropy-coded codes are expected to take of that.
    """
    if isinstance(strategy, AstraConfig):
        return coded_share * float(strategy.num_groups * sum(strategy.bits_by_layer(shape.num_layers)))
    if isinstance(strategy, SequenceConfig):
        return float(shape.num_layers * 8 * encoded_size(strategy.wire, 1, shape.width))
    if not isinstance(strategy, PrismConfig):
        return None
    rows = rows_per_rank(shape, ranges)
    counts = [count_segments(count, strategy.num_segments, strategy.compression_ratio) for count in rows]
    sent = sum(encoded_size(strategy.wire, count, shape.width) for count in counts)
    return shape.num_layers * 8 * sent / sum(rows)


def compression_ratio(shape: ModelShape, bits: float | None) -> float | None:
    """Return how many times as many bits a token takes uncompressed."""
    return None if bits is None else shape.num_layers * shape.width * BITS_OF_FP32 / bits


def fpar(strategy: AnyStrategy, ranges: Sequence[range]) -> float | None:
    """Return the share of pairs of tokens that are on one device; None where peers' tokens are exact too."""
    approximate = isinstance(strategy, AstraConfig | PrismConfig)
    if not approximate and not (isinstance(strategy, SequenceConfig) and strategy.wire != "fp32"):
        return None
    lengths = [len(tokens) for tokens in ranges]
    return sum(length**2 for length in lengths) / sum(lengths) ** 2
