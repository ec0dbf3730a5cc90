"""What all families' adapters share: putting embedding, blocks and head together.

A family says how content and class tokens are embedded and what the head is; the rest follows from its shape.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from astra.models import Block, ModelShape
from astra.models.block import run_blocks

__all__ = ["TextAdapter", "TransformerAdapter"]


class TransformerAdapter(ABC):
    """A model as embedding, blocks and head; implements `ModelAdapter` but for what families differ in."""

    def __init__(self, shape: ModelShape, blocks: Sequence[Block]):
        self.shape = shape
        self.blocks = blocks

    @abstractmethod
    def input_rows(self, tokens: range) -> range:
        """Return the rows of an input that hold content `tokens`."""

    @abstractmethod
    def embed_content(self, inputs: Tensor, tokens: range, first_row: int = 0) -> Tensor:
        """Return x_BTD of the content `tokens` alone."""

    @abstractmethod
    def embed_class(self, batch: int) -> Tensor:
        """Return the class token as it enters layer 0, [B, num_class_tokens, D]."""

    @abstractmethod
    def head(self, x: Tensor) -> Tensor:
        """Return logits [..., C] of rows [..., D]."""

    def embed(self, inputs: Tensor) -> Tensor:
        """Return x_BTD of a whole input: class tokens, then content."""
        content_BTD = self.embed_content(inputs, range(self.shape.num_content_tokens))
        return torch.cat((self.embed_class(len(content_BTD)), content_BTD), dim=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits_BC of whole inputs; equals the Hugging Face forward."""
        x_BTD = run_blocks(self.blocks, self.embed(inputs), causal=self.shape.causal)
        return self.head(x_BTD[:, self.shape.answer_token])


class TextAdapter(TransformerAdapter):
    """A model whose inputs are token ids [B, T]: a row of an input is one id."""

    huggingface: PreTrainedModel

    def input_rows(self, tokens: range) -> range:
        """Return the ids of `tokens`: one each."""
        return tokens

    def embed_class(self, batch: int) -> Tensor:
        """Return no rows: causal models have no class token."""
        return torch.empty(batch, 0, self.shape.width, device=self.huggingface.device)
