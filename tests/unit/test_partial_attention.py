"""Attention over a cache: the same as `attend`, whole or merged from parts, and blind to what is not filled yet."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from astra import partial_attention
from astra.attention import attend, merge_heads
from astra.cache import KeyValueCache
from astra.partial_attention import KeyValues, attend_part, hide_absent, merge_parts

TOLERANCE = 1e-5  # fp32 sums of up to 30 products in another order
HEADS, WIDTH = 4, 8


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


def by_formula(q: Tensor, k: Tensor, v: Tensor, bias_TS: Tensor) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return merge_heads(torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + bias_TS, dim=-1) @ v)


@settings(deadline=None)  # the first call of a process takes long
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    kv_heads=st.sampled_from([1, 2, 4]),
    num_queries=st.sampled_from([1, 2, 7]),
    biased=st.booleans(),
)
def test_merged_parts_equal_attention_over_all_keys(
    lengths: list[int], kv_heads: int, num_queries: int, biased: bool
) -> None:
    total = sum(lengths)
    q, k, v = drawn(1, 2, HEADS, num_queries, WIDTH), *(drawn(seed, 2, kv_heads, total, WIDTH) for seed in (2, 3))
    bias = drawn(4, total) * biased
    cut = zip(*(torch.split(x, lengths, dim) for x, dim in ((k, 2), (v, 2), (bias, 0))), strict=True)
    parts = [attend_part(q, KeyValues(k, v, bias if biased else None)) for k, v, bias in cut]
    expected = by_formula(q, k, v, bias.expand(num_queries, -1))
    torch.testing.assert_close(merge_parts(parts), expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("num_own", [1, 6])
@pytest.mark.parametrize("num_earlier", [0, 5])
def test_causal_parts_equal_causal_attention(kv_heads: int, num_own: int, num_earlier: int) -> None:
    total = num_earlier + num_own
    q, k, v = drawn(1, 2, HEADS, num_own, WIDTH), *(drawn(seed, 2, kv_heads, total, WIDTH) for seed in (2, 3))
    earlier = KeyValues(k[:, :, :num_earlier], v[:, :, :num_earlier])
    own = KeyValues(k[:, :, num_earlier:], v[:, :, num_earlier:])
    parts = [attend_part(q, own, causal=True), *([attend_part(q, earlier)] if num_earlier else [])]
    torch.testing.assert_close(merge_parts(parts), attend(q, k, v, causal=True), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_the_kernel_and_plain_products_agree(kv_heads: int, causal: bool) -> None:
    q, k, v = drawn(1, 2, HEADS, 40, WIDTH), *(drawn(seed, 2, kv_heads, 40, WIDTH) for seed in (2, 3))
    keys = KeyValues(k, v, None if causal else drawn(4, 40))
    for kernel, plain in zip(
        attend_part(q, keys, causal=causal), partial_attention._attend_by_products(q, keys, causal=causal), strict=True
    ):
        torch.testing.assert_close(kernel, plain, rtol=TOLERANCE, atol=TOLERANCE)


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=8), num_queries=st.sampled_from([1, 3]))
@settings(max_examples=40, deadline=None)
def test_log_counts_equal_repeated_keys(counts: list[int], num_queries: int) -> None:
    repeats, num_keys = torch.tensor(counts), len(counts)
    q, k, v = drawn(1, 2, HEADS, num_queries, WIDTH), *(drawn(seed, 2, HEADS, num_keys, WIDTH) for seed in (2, 3))
    explicit = attend(q, k.repeat_interleave(repeats, dim=2), v.repeat_interleave(repeats, dim=2))
    found = merge_parts([attend_part(q, KeyValues(k, v, repeats.float().log()))])
    torch.testing.assert_close(found, explicit, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("num_queries", [1, 9])
def test_parts_of_very_unequal_weight_merge_without_overflow(num_queries: int) -> None:
    q, k = torch.ones(1, 1, num_queries, 1), torch.tensor([500.0, -500.0]).view(1, 1, 2, 1)
    v = torch.tensor([1.0, 2.0]).view(1, 1, 2, 1)
    for order in ([0, 1], [1, 0]):
        parts = [attend_part(q, KeyValues(k[:, :, [key]], v[:, :, [key]])) for key in order]
        assert merge_parts(parts).flatten().tolist() == [1.0] * num_queries


def test_hidden_keys_may_fill_whole_blocks_of_the_kernel() -> None:
    """A kernel that walks over keys in blocks of 512 meets one of which it sees nothing, at either end."""
    q, k, v = drawn(1, 1, HEADS, 20, WIDTH), drawn(2, 1, HEADS, 1300, WIDTH), drawn(3, 1, HEADS, 1300, WIDTH)
    for hidden in (slice(0, 600), slice(700, 1300)):
        absent = torch.zeros(1300, dtype=torch.bool)
        absent[hidden] = True
        found = attend_part(q, KeyValues(k, v, hide_absent(None, absent)))
        for one, other in zip(found, attend_part(q, KeyValues(k[:, :, ~absent], v[:, :, ~absent])), strict=True):
            torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE)


def test_cache_sees_the_prompt_and_each_added_token_and_nothing_else() -> None:
    """Room for tokens to come is NaN here: it must not spread."""
    cache = KeyValueCache(3)
    q, k, v = drawn(1, 1, HEADS, 1, WIDTH), drawn(2, 1, 2, 8, WIDTH), drawn(3, 1, 2, 8, WIDTH)
    cache.keep(0, KeyValues(torch.full_like(k[:, :, :5], torch.nan), torch.full_like(v[:, :, :5], torch.nan)))
    for _ in range(3):
        cache.extend(0, torch.full_like(k[:, :, :1], torch.nan), torch.full_like(v[:, :, :1], torch.nan))
    cache.keep(0, KeyValues(k[:, :, :2], v[:, :, :2]), KeyValues(k[:, :, 2:5], v[:, :, 2:5]))
    for length in range(5, 8):
        expected = attend(q, k[:, :, :length], v[:, :, :length])
        torch.testing.assert_close(merge_parts([cache.attend(0, q)]), expected, rtol=TOLERANCE, atol=TOLERANCE)
        cache.extend(0, k[:, :, length : length + 1], v[:, :, length : length + 1])
    with pytest.raises(AssertionError, match="room for 8 tokens only"):
        cache.extend(0, k[:, :, :1], v[:, :, :1])


def test_cache_adds_the_prompts_bias_and_none_for_new_tokens() -> None:
    cache, bias = KeyValueCache(1), torch.tensor([0.5, 2.0, 0.0])
    q, k, v = drawn(1, 1, HEADS, 1, WIDTH), drawn(2, 1, HEADS, 4, WIDTH), drawn(3, 1, HEADS, 4, WIDTH)
    cache.keep(0, KeyValues(k[:, :, :2], v[:, :, :2], bias[:2]), KeyValues(k[:, :, 2:3], v[:, :, 2:3]))
    cache.extend(0, k[:, :, 3:], v[:, :, 3:])
    expected = by_formula(q, k, v, torch.tensor([*bias.tolist(), 0.0]))
    torch.testing.assert_close(merge_parts([cache.attend(0, q)]), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_cache_keeps_its_buffers_from_text_to_text() -> None:
    cache = KeyValueCache(2)
    k = drawn(1, 1, HEADS, 5, WIDTH)
    cache.keep(0, KeyValues(k, k))
    place = cache._layers[0].k.data_ptr()
    cache.extend(0, k[:, :, :1], k[:, :, :1])
    cache.keep(0, KeyValues(k, k))
    assert cache._layers[0].k.data_ptr() == place
