"""Attention in parts: over keys that lie on different ranks, or that come at different times. Pure.

    legend: B batch, H query heads, J key/value heads, T queries, d head width, S keys of a part, D = H · d

        part p:   scores = q k_pᵀ/√d + bias      (softmax(scores) v_p,  log Σ exp(scores))
        merged:   Σ_p context_p · exp(log_sum_p) / Σ_p exp(log_sum_p)   =   softmax over all keys at once

So a rank attends to its own keys while those of its peers are still under way, and no one needs all keys in one tensor.
Reads a cache where it lies, without copying it.

Source: the merge is that of Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv 1805.02867, as
used between blocks by FlashAttention, and between devices by Ring Attention (arXiv 2310.01889).
"""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from astra.attention import merge_heads

__all__ = ["KeyValues", "Part", "attend_part", "hide_absent", "merge_parts"]


class KeyValues(NamedTuple):
    """Keys and values that queries attend to."""

    k_BJSd: Tensor
    """As many heads as queries have, or a divisor of them (grouped-query attention; head h reads k of h // group)."""
    v_BJSd: Tensor
    bias_S: Tensor | None = None
    """Added to the score of each key: log s makes one stand for s equal ones, minus infinity hides it."""


class Part(NamedTuple):
    """What queries saw in one part of the keys."""

    context_BHTd: Tensor
    log_sum_BHT: Tensor
    """Logarithm of the sum of the exponentials of all scores: the part's weight among the parts."""


def hide_absent(bias_R: Tensor | None, absent_R: Tensor | None) -> Tensor | None:
    """Return the bias of remote keys that also leaves out those that are absent, if any.

    exp(-inf) is 0, so that softmax gives exactly what it would without these keys.
    """
    if absent_R is None:
        return bias_R
    start_R = torch.zeros(len(absent_R)) if bias_R is None else bias_R
    return start_R.masked_fill(absent_R, -torch.inf)


def attend_part(q_BHTd: Tensor, keys: KeyValues, *, causal: bool = False) -> Part:
    """Attend over some of the keys, of which no query finds all hidden.

    Args:
        q_BHTd: Queries.
        keys: At least one key. One query's may lie anywhere, with rows that are dense; those of many are read in order.
        causal: The keys are of the queries' tokens: query i sees the first i + 1. They have no bias then.
    """
    k_BJSd, v_BJSd, bias_S = keys
    assert not (causal and bias_S is not None), "keys of the queries' own tokens have no bias"
    if q_BHTd.shape[2] > 1 and q_BHTd.device.type == "cpu":
        # what F.scaled_dot_product_attention runs on a CPU; only so does it tell the sums
        mask = None if bias_S is None else bias_S.to(q_BHTd.dtype)[None, None, None]
        k_BJSd, v_BJSd = k_BJSd.contiguous(), v_BJSd.contiguous()
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return Part(*flash(q_BHTd, k_BJSd, v_BJSd, 0.0, causal, attn_mask=mask))
    return _attend_by_products(q_BHTd, keys, causal=causal)


def merge_parts(parts: Sequence[Part]) -> Tensor:
    """Return the context over the keys of all parts, context_BTD."""
    return merge_heads(reduce(_merge_two, parts).context_BHTd)


def _merge_two(one: Part, other: Part) -> Part:
    share_BHT1 = torch.sigmoid(other.log_sum_BHT - one.log_sum_BHT)[..., None].to(one.context_BHTd.dtype)
    context_BHTd = torch.lerp(one.context_BHTd, other.context_BHTd, share_BHT1)
    return Part(context_BHTd, torch.logaddexp(one.log_sum_BHT, other.log_sum_BHT))


def _attend_by_products(q_BHTd: Tensor, keys: KeyValues, *, causal: bool) -> Part:
    """Attend with all scores in memory, on any device; for one query nothing is faster."""
    k_BJSd, v_BJSd, bias_S = keys
    batch, num_kv_heads, num_queries, width = len(q_BHTd), k_BJSd.shape[1], *q_BHTd.shape[2:]
    q_BJXd = q_BHTd.reshape(batch, num_kv_heads, -1, width) * width**-0.5  # X: queries of all heads of a group
    scores_BJXS = q_BJXd @ k_BJSd.transpose(-1, -2)
    if bias_S is not None:
        scores_BJXS = scores_BJXS + bias_S
    if causal:
        scores_BJgTS = scores_BJXS.unflatten(2, (-1, num_queries))
        later_TS = torch.ones(num_queries, num_queries, dtype=torch.bool, device=q_BHTd.device).triu(1)
        scores_BJXS = scores_BJgTS.masked_fill(later_TS, -torch.inf).flatten(2, 3)
    log_sum_BJX = scores_BJXS.logsumexp(dim=-1)
    context_BJXd = (scores_BJXS - log_sum_BJX[..., None]).exp() @ v_BJSd
    return Part(context_BJXd.reshape(q_BHTd.shape), log_sum_BJX.reshape(q_BHTd.shape[:3]))
