"""Tokens are dealt for equal work: by count where all see all, fewer to later ranks where tokens see earlier ones."""

import pytest

from astra.config import ModelConfig
from astra.dealing import ATTENTION_PRICE, split_tokens
from astra.models import ModelShape, planned_shape
from astra.partition import split
from astra.strategy_config import AstraConfig

GPT2 = planned_shape(ModelConfig.model_validate({"family": "gpt2", "size": "small", "num_tokens": 1024}))
VIT = planned_shape(ModelConfig(size="base", image_size=512))
ONE_TOKEN = 0.01
"""The work of one token among those of a rank, at four ranks and 1,024 tokens."""


def work(shape: ModelShape, tokens: range) -> float:
    """Multiplications with additions of a layer: the matrices, and queries with all keys up to the rank's last."""
    pairs = len(tokens) * tokens.stop
    return len(tokens) * shape.layer_weights + ATTENTION_PRICE * pairs * 2 * shape.num_heads * shape.head_width


def test_where_all_tokens_see_all_they_are_dealt_by_count() -> None:
    assert split_tokens(VIT, [1.0, 2.0, 1.0]) == split(1024, [1.0, 2.0, 1.0])


@pytest.mark.parametrize("weights", [[1.0] * 4, [1.0, 2.0, 3.0], [4.0, 1.0]])
def test_in_a_causal_model_every_rank_has_its_share_of_the_work(weights: list[float]) -> None:
    ranges = split_tokens(GPT2, weights)
    shares = [work(GPT2, tokens) / weight for tokens, weight in zip(ranges, weights, strict=True)]
    assert max(shares) / min(shares) < 1 + ONE_TOKEN * len(weights)


def test_later_ranks_of_a_causal_model_have_fewer_tokens() -> None:
    lengths = [len(tokens) for tokens in split_tokens(GPT2, [1.0] * 4)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1] + 20


def lengths(shape: ModelShape, config: AstraConfig | None) -> list[int]:
    return [len(tokens) for tokens in split_tokens(shape, [1.0] * 4, config)]


def test_codes_that_count_as_one_key_leave_later_ranks_more_tokens_than_exact_keys_do() -> None:
    """The last rank, whose tokens nobody looks at, encodes nothing: it gets the most."""
    counted = lengths(GPT2, AstraConfig())
    assert counted[-1] == max(counted) > lengths(GPT2, None)[-1]


def test_codes_of_many_groups_cost_their_look_ups() -> None:
    assert lengths(GPT2, AstraConfig(num_groups=32))[-1] < lengths(GPT2, AstraConfig(num_groups=16))[-1]


def test_turned_keys_do_not_count_as_one() -> None:
    """Equal codes at different positions are different keys in a Llama."""
    llama = planned_shape(ModelConfig.model_validate({"family": "llama", "size": "llama-3-8b", "num_tokens": 1024}))
    assert lengths(llama, AstraConfig(num_codewords=16))[-1] < lengths(llama, AstraConfig(num_codewords=16))[0]


def test_layer_weights_are_those_of_gpt2_and_of_a_gated_mlp() -> None:
    assert GPT2.layer_weights == 12 * 768**2
    llama = planned_shape(ModelConfig.model_validate({"family": "llama", "size": "tiny", "num_tokens": 8}))
    attention = 2 * llama.width * (llama.num_heads * llama.head_width + llama.kv_width)
    assert llama.layer_weights == attention + 3 * llama.width * llama.mlp_width
