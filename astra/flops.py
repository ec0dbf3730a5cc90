"""Count the floating-point operations that this thread runs, by the formulas of torch.utils.flop_counter.

    with counted_flops() as count:
        strategy.forward(request)
    count.total        2 for each multiplication with its addition, of matrix products and attention

Nothing is left out that multiplies matrices and everything else is: norms, activations, softmax and table look-ups do
not count. Attention counts all pairs of query and key, also those that a causal mask hides. Apart from torch's own
FlopCounterMode, because that hooks all modules of the process, and ranks may be threads; and it misses the fused
attention of CPUs. Counting slows things down, so count where nobody measures time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["FlopCount", "counted_flops"]


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Count QKᵀ and its product with V; keys may have fewer heads than queries."""
    batch, num_heads, num_queries, head_width = query.shape
    return 2 * batch * num_heads * num_queries * key.shape[2] * (head_width + value.shape[3])


def _packed_linear_flops(x: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    """Count x Wᵀ; a packed weight does not tell its shape to everyone, x and the result do."""
    return 2 * x.shape[-1] * out_val.numel()


_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    getattr(torch.ops.mkldnn, "_linear_pointwise", None): _packed_linear_flops,  # see models.packing
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}


class FlopCount(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types no init_subclass
    """Adds up the operations of whatever runs inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation, or the parts that it is made of."""
        kwargs = kwargs or {}
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is None:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=result)
        return result


@contextmanager
def counted_flops() -> Iterator[FlopCount]:
    """Count what runs in the `with` block, on this thread."""
    count = FlopCount()
    with count:
        yield count
