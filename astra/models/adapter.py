"""What all families' adapters share: sizes, and putting embedding, blocks and head together.

A family says how content and class tokens are embedded, and which modules are its blocks and its head.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from astra.models import ModelShape
from astra.models.block import Function, TransformerBlock, run_blocks

__all__ = ["TextAdapter", "TransformerAdapter"]


class TransformerAdapter(ABC):
    """A model as embedding, blocks and head; implements `ModelAdapter` but for what families differ in."""

    def __init__(
        self, model: PreTrainedModel, num_content_tokens: int, blocks: Sequence[TransformerBlock], head: Function
    ):
        self.huggingface = model
        self.shape = _shape_of(model.config, num_content_tokens)
        self.blocks = blocks
        self._head = head

    def packed_if(self, spare_bytes: int) -> Self:
        """Return the same model with packed layers if they take at most half of `spare_bytes`, else this one."""
        if 2 * sum(block.matrix_bytes() for block in self.blocks) > spare_bytes:
            return self
        packed = copy.copy(self)
        packed.blocks = [block.packed() for block in self.blocks]
        return packed

    @abstractmethod
    def input_rows(self, tokens: range) -> range:
        """Return the rows of an input that hold content `tokens`."""

    @abstractmethod
    def embed_content(self, inputs: Tensor, tokens: range, first_row: int = 0) -> Tensor:
        """Return x_BTD of the content `tokens` alone."""

    @abstractmethod
    def embed_class(self, batch: int) -> Tensor:
        """Return the class token as it enters layer 0, [B, num_class_tokens, D]."""

    def embed(self, inputs: Tensor) -> Tensor:
        """Return x_BTD of a whole input: class tokens, then content."""
        content_BTD = self.embed_content(inputs, range(self.shape.num_content_tokens))
        return torch.cat((self.embed_class(len(content_BTD)), content_BTD), dim=1)

    def head(self, x: Tensor) -> Tensor:
        """Return logits [..., C] of rows [..., D]."""
        return self._head(x)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits_BC of whole inputs; equals the Hugging Face forward."""
        x_BTD = run_blocks(self.blocks, self.embed(inputs), causal=self.shape.causal)
        return self.head(x_BTD[:, self.shape.answer_token])


class TextAdapter(TransformerAdapter):
    """A model whose inputs are token ids [B, T]: a row of an input is one id."""

    def input_rows(self, tokens: range) -> range:
        """Return the ids of `tokens`: one each."""
        return tokens

    def embed_content(self, inputs: Tensor, tokens: range, first_row: int = 0) -> Tensor:
        """Embed the ids of `tokens`; `inputs` [B, rows] begins at token `first_row`."""
        own_BT = inputs[:, tokens.start - first_row : tokens.stop - first_row]
        return self.embed_ids(own_BT, self.shape.num_class_tokens + tokens.start)

    @abstractmethod
    def embed_ids(self, ids_BT: Tensor, first_position: int) -> Tensor:
        """Return x_BTD of ids whose positions, class token included, begin at `first_position`."""

    def embed_class(self, batch: int) -> Tensor:
        """Return no rows: causal models have no class token."""
        return torch.empty(batch, 0, self.shape.width, device=self.huggingface.device)


def _shape_of(config: Any, num_content_tokens: int) -> ModelShape:
    """Read a Hugging Face config; GPT-2's has other names, for which it has aliases but for one."""
    causal = config.model_type in ("gpt2", "llama")
    width, num_heads = config.hidden_size, config.num_attention_heads
    mlp_width = config.n_inner or 4 * width if config.model_type == "gpt2" else config.intermediate_size
    return ModelShape(
        family=config.model_type,
        num_layers=config.num_hidden_layers,
        width=width,
        num_heads=num_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", num_heads),
        head_width=width // num_heads,
        mlp_width=mlp_width,
        num_content_tokens=num_content_tokens,
        num_class_tokens=0 if causal else 1,
        num_outputs=config.vocab_size if causal else config.num_labels,
        causal=causal,
        vocabulary=getattr(config, "vocab_size", 0),
    )
