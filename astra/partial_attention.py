"""Attention of one new token over cached keys, whole or in parts that lie on different ranks. Pure.

    legend: B batch, H query heads, d head width, S cached keys, D = H · d

        rank r:  scores = q kᵀ/√d      part r = (softmax(scores) v, log Σ exp(scores))
        merged:  Σ_r context_r · exp(log_sum_r) / Σ_r exp(log_sum_r)   =   softmax over all keys at once

A query sees every cached key: all are of earlier tokens or its own. Reads the cache where it lies, without copying it.

Source: the merge is that of Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv 1805.02867, as
used between blocks by FlashAttention.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Part", "attend_part", "merge_parts"]


@dataclass(frozen=True)
class Part:
    """What one query saw in one part of the keys."""

    context: Tensor
    """[B, H, d]."""
    log_sum: Tensor
    """[B, H]: logarithm of the sum of the exponentials of all scores, the part's weight among the parts."""


def attend_part(q_BH1d: Tensor, k_BJSd: Tensor, v_BJSd: Tensor, key_bias_S: Tensor | None = None) -> Part:
    """Attend over some of the keys.

    Args:
        q_BH1d: The query.
        k_BJSd: Keys; J heads that divide H (head h reads k of h // group). The last two dimensions must be dense.
        v_BJSd: Values, like the keys.
        key_bias_S: Added to the scores of each key.
    """
    batch, num_heads, _, width = q_BH1d.shape
    q_BJgd = q_BH1d.reshape(batch, k_BJSd.shape[1], -1, width) * width**-0.5
    scores_BJgS = q_BJgd @ k_BJSd.transpose(-1, -2)
    if key_bias_S is not None:
        scores_BJgS = scores_BJgS + key_bias_S
    log_sum_BJg = scores_BJgS.logsumexp(dim=-1)
    context_BJgd = (scores_BJgS - log_sum_BJg[..., None]).exp() @ v_BJSd
    return Part(context_BJgd.reshape(batch, num_heads, width), log_sum_BJg.reshape(batch, num_heads))


def merge_parts(parts: Sequence[Part]) -> Tensor:
    """Return the context over the keys of all parts, context_BHd."""
    if len(parts) == 1:
        return parts[0].context
    weights_PBH = torch.softmax(torch.stack([part.log_sum for part in parts]), dim=0)
    contexts_PBHd = torch.stack([part.context for part in parts])
    return (weights_PBH[..., None] * contexts_PBHd).sum(dim=0)
