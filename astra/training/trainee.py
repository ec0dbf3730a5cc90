"""What is trained: a model, and with ASTRA one quantiser a layer, over devices that are emulated in one process.

    inputs ──adapt(model)──► single | astra | prism, emulated ──► rows after the last layer ──► loss

    legend: B batch, T tokens, D width

The adapter is made anew for every pass, from views of the model's parameters, so that it never holds a stale one.

Source: ASTRA, arXiv 2505.19342: tokens are assigned to devices at random in training; loss = task + β · commitment.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from astra.clustering import fit_codebooks
from astra.codebook import GroupedCodebook
from astra.dealing import split_tokens
from astra.models import ModelAdapter, adapt
from astra.partition import split
from astra.training.emulation import Emulated, answer_rows, emulate_astra, emulate_prism, emulate_single, owners_of
from astra.training.quantiser import LayerQuantiser
from astra.training.recipe import AstraMethod, Method, PrismMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Rows", "Trainee", "fitted_quantisers"]


@dataclass(frozen=True)
class Rows:
    """What one pass gives the task."""

    x: Tensor
    """[B, D] rows of the answer, or [B, T, D] of all content tokens."""
    commitment: Tensor
    """Sum over the layers of the mean squared distance to the codewords, to be weighted by β; 0 without codebooks."""


class Trainee:
    """A model and its quantisers, under one method."""

    def __init__(
        self,
        model: "PreTrainedModel",
        num_tokens: int | None,
        method: Method | None,
        quantisers: list[LayerQuantiser] | None = None,
    ):
        """Take a model, the content tokens of a text (None for images), and quantisers for ASTRA alone."""
        assert (quantisers is not None) == isinstance(method, AstraMethod), "ASTRA has quantisers, others have none"
        self.model = model
        self._num_tokens = num_tokens
        self.method = method
        self.quantisers = nn.ModuleList(quantisers or [])

    @property
    def torch_device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.model.parameters()).device

    def adapter(self) -> ModelAdapter:
        """Return the model's parts, with gradients to its parameters."""
        return adapt(self.model, self._num_tokens)

    def codebooks(self) -> list[GroupedCodebook]:
        """Return the codebooks as they are used outside of training."""
        return [layer.to_codebook() for layer in self._layers]

    def train(self, mode: bool) -> None:
        """Let quantisers learn and add noise, or neither."""
        self.model.train(mode)
        self.quantisers.train(mode)

    def rows(self, adapter: ModelAdapter, inputs: Tensor, *, every: bool, generator: torch.Generator) -> Rows:
        """Run all layers; `every` asks for all content rows instead of the answer's.

        While training, tokens are dealt to devices at random; otherwise every device has the slice that it will have.
        """
        emulated = self._emulate(adapter, inputs, generator)
        x = emulated.content_BTD if every else answer_rows(emulated, adapter.shape)
        parts = [quantiser.commitment for quantiser in self._layers]
        return Rows(x, torch.stack(parts).sum() if parts else x.new_zeros(()))

    @property
    def _layers(self) -> list[LayerQuantiser]:
        return [layer for layer in self.quantisers if isinstance(layer, LayerQuantiser)]

    def _emulate(self, adapter: ModelAdapter, inputs: Tensor, generator: torch.Generator) -> Emulated:
        method, shape = self.method, adapter.shape
        if method is None:
            return emulate_single(adapter, inputs)
        weights = [1.0] * method.num_devices
        if isinstance(method, PrismMethod):
            return emulate_prism(adapter, inputs, split(shape.num_content_tokens, weights), method)
        layers = self._layers
        owners_T = owners_of(split_tokens(shape, weights, method))
        if self.quantisers.training:
            owners_T = owners_T[torch.randperm(len(owners_T), generator=generator)]
        return emulate_astra(
            adapter,
            inputs,
            owners_T.to(inputs.device),
            method.num_devices,
            quantise=lambda layer, rows_BTE: layers[layer](rows_BTE, generator),
            site=method.site,
            class_tokens=method.class_tokens,
        )


def fitted_quantisers(adapter: ModelAdapter, inputs: Tensor, method: AstraMethod, seed: int) -> list[LayerQuantiser]:
    """Start a quantiser for every layer by k-means on the model's own activations of `inputs`."""
    codebooks = fit_codebooks(adapter, inputs, method.num_groups, method.num_codewords, seed=seed, site=method.site)
    return [LayerQuantiser.from_codebook(codebook, method) for codebook in codebooks]
