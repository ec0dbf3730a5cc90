"""Products with weights in the layout that oneDNN's kernels read: packed once, where torch offers that.

    weight [out, in] --pack--> packed ──┐
    x [..., in] ────────────────────────┴─ packed_linear ──► gelu?(x Wᵀ + b) [..., out]

Per product, `F.linear` brings the weight into such a layout anew, and a GELU reads and writes all that the product just
wrote. Packed and fused, one core of an AMD EPYC takes 11.8 instead of 14.1 ms for 257 rows of 768 into 3,072 hidden
units, and 46 instead of 61 ms for 1,025 (docs/results/performance.md). A packed weight takes as much memory as the
weight itself, which stays for those that need a part of it.

The two operators are those that `torch.compile` calls for frozen CPU models. They are not documented, so where they are
missing, or refuse a weight, there is no packed form and everything goes by `F.linear`.
"""

from typing import Any

import torch
from torch import Tensor

from astra.models.activation import Gelu

__all__ = ["pack", "packed_linear"]


def pack(weight: Tensor) -> Tensor | None:
    """Return a weight [out, in] in oneDNN's own layout, opaque; None where that cannot be done."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not weight.numel():
        return None
    try:
        packed: Tensor = _operators()._reorder_linear_weight(weight.detach().contiguous())
    except (AttributeError, NotImplementedError, RuntimeError):  # not in this torch, or not for this processor
        return None
    return packed


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, gelu: Gelu | None = None) -> Tensor:
    """Return x Wᵀ + b for x [..., in] in fp32, through a GELU if one is given; no gradients."""
    function, kind = ("none", "") if gelu is None else ("gelu", gelu.approximate)
    product: Tensor = _operators()._linear_pointwise(x, packed, bias, function, [], kind)
    return product


def _operators() -> Any:
    return torch.ops.mkldnn
