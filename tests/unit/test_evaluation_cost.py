"""What accuracy is bought with: bits of a token, and attention that stays exact."""

import pytest

from astra.config import ModelConfig
from astra.evaluation.cost import bits_per_token, compression_ratio, fpar
from astra.models import planned_shape
from astra.strategy_config import AstraConfig, PrismConfig, SequenceConfig, TensorConfig

VIT_BASE = planned_shape(ModelConfig(size="base", image_size=224))


def test_fpar_is_the_share_of_pairs_that_see_each_other_exactly() -> None:
    assert fpar(AstraConfig(), [range(5)]) == 1.0
    assert fpar(AstraConfig(), [range(8), range(8, 16)]) == 0.5
    assert fpar(PrismConfig(num_segments=1), [range(1), range(1, 4)]) == 10 / 16
    assert fpar(SequenceConfig(wire="int8"), [range(8), range(8, 16)]) == 0.5


def test_fpar_is_empty_where_nothing_is_approximate() -> None:
    assert fpar(SequenceConfig(), [range(8), range(8, 16)]) is None
    assert fpar(TensorConfig(wire="int8"), [range(16)] * 2) is None


def test_astra_token_costs_the_paper_s_bits() -> None:
    bits = bits_per_token(AstraConfig(), VIT_BASE, [range(98), range(98, 196)])
    assert bits == 120
    assert compression_ratio(VIT_BASE, bits) == pytest.approx(2457.6)
    assert bits_per_token(SequenceConfig(), VIT_BASE, [range(196)]) == 12 * 32 * 768
    assert bits_per_token(TensorConfig(), VIT_BASE, [range(196)]) is None
