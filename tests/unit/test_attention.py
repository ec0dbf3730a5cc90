"""Attention equals its formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from astra.attention import attend, merge_heads, positions_of, split_heads

ROUNDING = 1e-5  # fp32 sums in another order
POISON = 1e30


def random_heads(num_tokens: int) -> Tensor:
    return torch.randn(2, 3, num_tokens, 4)


def test_attend_equals_the_formula() -> None:
    q, k, v = random_heads(5), random_heads(7), random_heads(7)
    weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(4), dim=-1)
    torch.testing.assert_close(attend(q, k, v), merge_heads(weights @ v), rtol=ROUNDING, atol=ROUNDING)


def test_attend_does_not_depend_on_the_order_of_keys() -> None:
    q, k, v = random_heads(5), random_heads(7), random_heads(7)
    order = torch.randperm(7)
    torch.testing.assert_close(attend(q, k[:, :, order], v[:, :, order]), attend(q, k, v), rtol=ROUNDING, atol=ROUNDING)


def by_formula(q: Tensor, k: Tensor, v: Tensor, bias_TS: Tensor) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return merge_heads(torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + bias_TS, dim=-1) @ v)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("num_keys", [5, 9])
@pytest.mark.parametrize("causal", [False, True])
def test_attend_masks_and_shares_heads(num_kv_heads: int, num_keys: int, causal: bool) -> None:
    q, k, v = torch.randn(2, 4, 5, 8), *torch.randn(2, 2, num_kv_heads, num_keys, 8)
    bias_TS = torch.zeros(5, num_keys)
    if causal:
        query_TS, key_TS = torch.arange(5)[:, None], torch.arange(num_keys)[None]
        bias_TS = bias_TS.masked_fill(key_TS > num_keys - 5 + query_TS, -torch.inf)
    found = attend(q, k, v, causal=causal)
    torch.testing.assert_close(found, by_formula(q, k, v, bias_TS), rtol=ROUNDING, atol=ROUNDING)


@given(num_queries=st.integers(1, 40), num_earlier=st.integers(0, 40), later=st.integers(0, 39))
@settings(max_examples=60, deadline=None)
def test_attend_hides_later_keys_whatever_they_hold(num_queries: int, num_earlier: int, later: int) -> None:
    """Poison the keys and values from one own token on: the queries before it do not move by a bit.

    The poison is 1e30: a blocked product multiplies hidden values by a weight of 0, and 0 · NaN is NaN.
    """
    first = num_earlier + later % num_queries
    q, k, v = (torch.randn(1, 2, n, 4) for n in (num_queries, *(num_earlier + num_queries,) * 2))
    clean = attend(q, k, v, causal=True)
    k[:, :, first:], v[:, :, first:] = POISON, POISON
    seen = later % num_queries
    assert torch.equal(attend(q, k, v, causal=True)[:, :seen], clean[:, :seen])


def test_positions_of_ranges_keep_their_order() -> None:
    assert positions_of([range(3, 5), range(2)]).tolist() == [3, 4, 0, 1]
    assert positions_of([]).tolist() == []


def test_split_heads_and_merge_heads_undo_each_other() -> None:
    x_BTD = torch.randn(2, 5, 12)
    assert torch.equal(merge_heads(split_heads(x_BTD, 3)), x_BTD)
    assert torch.equal(split_heads(x_BTD, 3)[1, 2, 4], x_BTD[1, 4, 8:])
