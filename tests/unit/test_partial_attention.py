"""Attention over a cache: the same as `attend`, whole or merged from parts, and blind to what is not filled yet."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from astra.attention import attend
from astra.cache import KeyValueCache
from astra.partial_attention import attend_part, merge_parts

TOLERANCE = 1e-5  # fp32 sums of up to 30 products in another order
HEADS, WIDTH = 4, 8


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


@settings(deadline=None)  # the first call of a process takes long
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), kv_heads=st.sampled_from([1, 2, 4]))
def test_merged_parts_equal_attention_over_all_keys(lengths: list[int], kv_heads: int) -> None:
    total = sum(lengths)
    q, k, v = drawn(1, 1, HEADS, 1, WIDTH), drawn(2, 1, kv_heads, total, WIDTH), drawn(3, 1, kv_heads, total, WIDTH)
    bias = drawn(4, total)
    parts = [
        attend_part(q, *rows)
        for rows in zip(k.split(lengths, 2), v.split(lengths, 2), bias.split(lengths), strict=True)
    ]
    expected = attend(q, k, v, key_bias_S=bias)[:, 0]
    torch.testing.assert_close(merge_parts(parts).flatten(1), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_parts_of_very_unequal_weight_merge_without_overflow() -> None:
    q, k = torch.ones(1, 1, 1, 1), torch.tensor([500.0, -500.0]).view(1, 1, 2, 1)
    v = torch.tensor([1.0, 2.0]).view(1, 1, 2, 1)
    merged = merge_parts([attend_part(q, k[:, :, :1], v[:, :, :1]), attend_part(q, k[:, :, 1:], v[:, :, 1:])])
    assert merged.item() == 1.0


def test_cache_sees_the_prompt_and_each_added_token_and_nothing_else() -> None:
    """Room for tokens to come is NaN here: it must not spread."""
    cache = KeyValueCache(3)
    q, k, v = drawn(1, 1, HEADS, 1, WIDTH), drawn(2, 1, 2, 8, WIDTH), drawn(3, 1, 2, 8, WIDTH)
    cache.keep(0, torch.full_like(k[:, :, :5], torch.nan), torch.full_like(v[:, :, :5], torch.nan))
    for _ in range(3):
        cache.extend(0, torch.full_like(k[:, :, :1], torch.nan), torch.full_like(v[:, :, :1], torch.nan))
    cache.keep(0, k[:, :, :5], v[:, :, :5])
    for length in range(5, 8):
        expected = attend(q, k[:, :, :length], v[:, :, :length])[:, 0]
        torch.testing.assert_close(cache.attend(0, q).context.flatten(1), expected, rtol=TOLERANCE, atol=TOLERANCE)
        cache.extend(0, k[:, :, length : length + 1], v[:, :, length : length + 1])
    with pytest.raises(AssertionError, match="room for 8 tokens only"):
        cache.extend(0, k[:, :, :1], v[:, :, :1])


def test_cache_adds_the_prompts_bias_and_none_for_new_tokens() -> None:
    cache, bias = KeyValueCache(1), torch.tensor([0.5, 2.0, 0.0])
    q, k, v = drawn(1, 1, HEADS, 1, WIDTH), drawn(2, 1, HEADS, 4, WIDTH), drawn(3, 1, HEADS, 4, WIDTH)
    cache.keep(0, k[:, :, :3], v[:, :, :3], bias)
    cache.extend(0, k[:, :, 3:], v[:, :, 3:])
    expected = attend(q, k, v, key_bias_S=torch.tensor([*bias.tolist(), 0.0]))[:, 0]
    torch.testing.assert_close(cache.attend(0, q).context.flatten(1), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_cache_keeps_its_buffers_from_text_to_text() -> None:
    cache = KeyValueCache(2)
    k = drawn(1, 1, HEADS, 5, WIDTH)
    cache.keep(0, k, k)
    place = cache._layers[0].k.data_ptr()
    cache.extend(0, k[:, :, :1], k[:, :, :1])
    cache.keep(0, k, k)
    assert cache._layers[0].k.data_ptr() == place
