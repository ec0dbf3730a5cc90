"""Attention of own queries over own and remote keys. Pure.

    legend: B batch, T tokens, D width, H heads, d head width, S keys, R remote tokens

        causal, rank r:   keys    [ earlier ranks' tokens | own tokens ]
                          query i  sees all of these      | and the first i + 1 of these

Keys come as exact rows of this rank's tokens and rows made for remote tokens; softmax runs over both at once. Without
a causal mask the order of keys is free. Does not know where keys come from.
"""

from collections.abc import Iterable
from functools import lru_cache

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

__all__ = ["attend", "hide_absent", "merge_heads", "positions_of", "prepend_remote", "split_heads"]


def split_heads(x_BTD: Tensor, num_heads: int) -> Tensor:
    """View `x_BTD` as `x_BHTd`, without copying."""
    batch, num_tokens, width = x_BTD.shape
    return x_BTD.view(batch, num_tokens, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(x_BHTd: Tensor) -> Tensor:
    """Undo `split_heads`."""
    batch, num_heads, num_tokens, head_width = x_BHTd.shape
    return x_BHTd.transpose(1, 2).reshape(batch, num_tokens, num_heads * head_width)


def prepend_remote(remote_BHRd: Tensor, own_BHTd: Tensor) -> Tensor:
    """Join [remote | own] keys or values along the tokens; the result is contiguous per head, as `attend` likes."""
    return torch.cat((remote_BHRd, own_BHTd), dim=2)


def positions_of(token_ranges: Iterable[range]) -> Tensor:
    """Return the positions [T] of the tokens of several ranges, one range after the other."""
    parts = [torch.arange(tokens.start, tokens.stop) for tokens in token_ranges]
    return torch.cat(parts) if parts else torch.arange(0)


def hide_absent(key_bias_S: Tensor, absent_R: Tensor | None) -> Tensor:
    """Return the bias of keys [remote | own] that also leaves out the remote tokens that are absent, if any.

    exp(-inf) is 0, so that softmax gives exactly what it would without these keys.
    """
    if absent_R is None:
        return key_bias_S
    hidden_S = key_bias_S.clone()
    hidden_S[: len(absent_R)][absent_R] = -torch.inf
    return hidden_S


def attend(
    q_BHTd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, *, causal: bool = False, key_bias_S: Tensor | None = None
) -> Tensor:
    """Compute softmax(QKᵀ/√d + bias)V over the keys that each query may see; return the context as [B, T, D].

    Keys and values are made contiguous per head first: at 1,025 keys of 64 that copy costs 0.2 ms each and saves
    1 to 2 ms a layer of strided reads (one thread).

    Args:
        q_BHTd: Queries.
        k_BHSd: Keys, as many heads as q or a divisor of them (grouped-query attention; head h reads k of h // group).
        v_BHSd: Values, like the keys.
        causal: The queries belong to the last T keys, in order: query i sees all keys but the last T - 1 - i.
        key_bias_S: Added to the logits of each key; log s makes one key stand for s equal ones.
    """
    num_queries, num_keys = q_BHTd.shape[2], k_BHSd.shape[2]
    masked = causal and num_queries > 1
    from_the_start = masked and num_queries == num_keys and key_bias_S is None
    bias_TS: Tensor | None = None
    if key_bias_S is not None:
        bias_TS = key_bias_S[None].expand(num_queries, -1)
    if masked and not from_the_start:
        bias_TS = _with_causal_mask(bias_TS, num_queries, num_keys, q_BHTd)
    context_BHTd = F.scaled_dot_product_attention(
        q_BHTd,
        k_BHSd.contiguous(),
        v_BHSd.contiguous(),
        attn_mask=bias_TS,
        is_causal=from_the_start,
        enable_gqa=q_BHTd.shape[1] != k_BHSd.shape[1],
    )
    return merge_heads(context_BHTd)


def _with_causal_mask(bias_TS: Tensor | None, num_queries: int, num_keys: int, like: Tensor) -> Tensor:
    """Return a bias of its own that also hides from each of the last queries the keys behind it."""
    own = slice(num_keys - num_queries, None)
    masked_TS = like.new_zeros(num_queries, num_keys) if bias_TS is None else bias_TS.clone()
    masked_TS[:, own] += _causal_mask(num_queries, like.device)
    return masked_TS


@lru_cache(maxsize=8)
def _causal_mask(num_tokens: int, device: torch.device) -> Tensor:
    """Return [T, T]: 0 where a query may look, minus infinity where the key is later."""
    with torch.inference_mode(False):
        return torch.full((num_tokens, num_tokens), -torch.inf, device=device).triu(1)
