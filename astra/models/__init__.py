"""What a model must offer to be run by any strategy, and `load_model`.

    legend: B batch, T tokens, D width, E = 2D keys and values side by side, H heads, d head width, C outputs

        inputs --embed_content--> x_BTD --block 0 .. L-1--> x_BTD --head (of the class token)--> logits_BC
                                          one block:  u = attention_input(x)
                                                      q, k, v = query(u), *key_value(u)
                                                      x = finish(x, attend(q, k, v))

An adapter knows nothing of distribution. Its blocks are functions of the original weights, row by row except for
attention itself, so that any rank can run them on any subset of tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from astra.config import ModelConfig

__all__ = ["Block", "ModelAdapter", "ModelShape", "load_model"]


@dataclass(frozen=True)
class ModelShape:
    """The numbers that traffic formulas and codebooks need."""

    num_layers: int
    width: int
    num_heads: int
    head_width: int
    num_content_tokens: int
    """Tokens that come from the input and are split over the ranks; class tokens are not among them."""
    num_class_tokens: int
    num_outputs: int
    causal: bool


class Block(Protocol):
    """One Transformer layer, taken apart at its attention."""

    @property
    def key_value_weight(self) -> Tensor:
        """[2D, D], keys above values; put together on each call, so read it at load and not per request."""

    @property
    def key_value_bias(self) -> Tensor | None:
        """[2D], or None for projections without bias."""

    def attention_input(self, x_BTD: Tensor) -> Tensor:
        """Return u_BTD, what the projections read: norm 1 of x in a pre-norm model."""

    def query(self, u_BTD: Tensor) -> Tensor:
        """Return q_BHTd."""

    def key_value(self, u_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return k_BHTd and v_BHTd, affine in every row of u."""

    def finish(self, x_BTD: Tensor, context_BTD: Tensor) -> Tensor:
        """Return the layer's output: output projection, residual, norm, MLP, residual."""


class ModelAdapter(Protocol):
    """A model as its embedding, its blocks and its head."""

    @property
    def shape(self) -> ModelShape:
        """Its sizes."""

    @property
    def blocks(self) -> Sequence[Block]:
        """Its layers in order."""

    def input_rows(self, tokens: range) -> range:
        """Return the rows of an input (second-last dimension of an image) that hold content `tokens`."""

    def embed_content(self, inputs: Tensor, tokens: range, first_row: int = 0) -> Tensor:
        """Return x_BTD of the content `tokens` alone.

        `inputs` may be the whole input, or only a band of its rows that starts at row `first_row` and covers
        `input_rows(tokens)`.
        """

    def embed_class(self, batch: int) -> Tensor:
        """Return the class token as it enters layer 0, [B, num_class_tokens, D]."""

    def head(self, class_BD: Tensor) -> Tensor:
        """Return logits_BC from the class token after the last layer."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits_BC of whole inputs, on this one device: what `single` computes."""


def load_model(config: ModelConfig) -> ModelAdapter:
    """Build the model that `config` names, with weights that are the same on every rank.

    Raises:
        ConfigError: The checkpoint folder is missing, unreadable, or not what `config` says.
    """
    from astra.models.vit import load_vit  # transformers takes seconds to import; checks of configs go without

    return load_vit(config)
