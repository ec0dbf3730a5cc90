"""Attention equals its formula, and remote rows count like any other."""

import math

import torch
from torch import Tensor

from astra.attention import append_remote, attend, merge_heads, split_heads

ROUNDING = 1e-5  # fp32 sums in another order


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


def test_append_remote_puts_local_rows_first() -> None:
    local, remote = random_heads(2), random_heads(3)
    joined = append_remote(local, remote)
    assert torch.equal(joined[:, :, :2], local)
    assert torch.equal(joined[:, :, 2:], remote)


def test_split_heads_and_merge_heads_undo_each_other() -> None:
    x_BTD = torch.randn(2, 5, 12)
    assert torch.equal(merge_heads(split_heads(x_BTD, 3)), x_BTD)
    assert torch.equal(split_heads(x_BTD, 3)[1, 2, 4], x_BTD[1, 4, 8:])
