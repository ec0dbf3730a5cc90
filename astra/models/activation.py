"""The activations of the MLPs, as functions that a product can be fused with where that is known.

    Hugging Face module --activation_of--> Gelu | the module itself

A published model's GELU is one of two functions: by the error function (ViT, BERT) or by tanh (GPT-2). Hugging Face
writes the latter out, in eight passes over the hidden units (7 ms for 257 x 3,072 on one thread); torch's own takes
one (1.3 ms) and is the same function.

Source: Hendrycks & Gimpel, Gaussian Error Linear Units, arXiv 1606.08415.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor
from transformers import activations

__all__ = ["Activation", "Gelu", "activation_of"]

Activation = Callable[[Tensor], Tensor]
"""Applies to every number by itself."""


@dataclass(frozen=True)
class Gelu:
    """x Φ(x), exactly or with the usual approximation of Φ."""

    approximate: Literal["none", "tanh"]

    def __call__(self, x: Tensor) -> Tensor:
        """Apply it."""
        return F.gelu(x, approximate=self.approximate)


def activation_of(module: Any) -> Activation:
    """Return the same function as a Hugging Face module computes: a `Gelu` if it is one."""
    if isinstance(module, activations.NewGELUActivation | activations.GELUTanh):
        return Gelu("tanh")
    if isinstance(module, activations.GELUActivation) and module.act is F.gelu:
        return Gelu("none")
    function: Activation = module
    return function
