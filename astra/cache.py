"""Keys and values of all tokens so far, one buffer a layer, made once and filled from request to request.

    legend: B batch, J key/value heads, S keys, d head width

        prefill:  strategy ──keep(layer, keys)──► [ prompt | room for new tokens ]
        decode:   layer, k, v of one token ──extend──► the next row

What is kept is what the strategy attended to: exact or quantised keys, means with their bias, some heads or all. Knows
nothing of ranks and strategies.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from astra.partial_attention import KeyValues, Part, attend_part

__all__ = ["KeyValueCache"]


@dataclass
class _Layer:
    """Buffers [B, J, rows, d], of which the first `length` rows are filled."""

    k: Tensor
    v: Tensor
    length: int
    bias_S: Tensor | None = None
    """Added to the score of each row; 0 for tokens that are added."""


class KeyValueCache:
    """One rank's keys and values, of those layers and heads that it decodes with."""

    def __init__(self, new_tokens: int):
        """Take how many tokens are to be added to a prompt at most."""
        self._new_tokens = new_tokens
        self._layers: dict[int, _Layer] = {}

    def keep(self, layer: int, *parts: KeyValues) -> None:
        """Replace what the layer holds by a prompt's keys and values; they are copied, one part behind the other."""
        length, (k_BJSd, v_BJSd, _) = sum(part.k_BJSd.shape[2] for part in parts), parts[0]
        size = torch.Size((*k_BJSd.shape[:2], length + self._new_tokens, k_BJSd.shape[3]))
        held = self._layers.get(layer)
        if held is None or held.k.shape != size:
            held = self._layers[layer] = _Layer(k_BJSd.new_empty(size), v_BJSd.new_empty(size), length)
        held.length = length
        held.bias_S = None if all(part.bias_S is None for part in parts) else k_BJSd.new_zeros(size[2])
        start = 0
        for part in parts:
            rows = slice(start, start := start + part.k_BJSd.shape[2])
            held.k[:, :, rows] = part.k_BJSd
            held.v[:, :, rows] = part.v_BJSd
            if held.bias_S is not None and part.bias_S is not None:
                held.bias_S[rows] = part.bias_S

    def extend(self, layer: int, k_BJ1d: Tensor, v_BJ1d: Tensor) -> None:
        """Add a token's keys and values to those of the layer."""
        held = self._layers[layer]
        assert held.length < held.k.shape[2], f"the cache of layer {layer} has room for {held.length} tokens only"
        held.k[:, :, held.length] = k_BJ1d[:, :, 0]
        held.v[:, :, held.length] = v_BJ1d[:, :, 0]
        held.length += 1

    def attend(self, layer: int, q_BH1d: Tensor) -> Part:
        """Let one token's query see everything that the layer holds."""
        held = self._layers[layer]
        bias_S = None if held.bias_S is None else held.bias_S[: held.length]
        return attend_part(q_BH1d, KeyValues(held.k[:, :, : held.length], held.v[:, :, : held.length], bias_S))
