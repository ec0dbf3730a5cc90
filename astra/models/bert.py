"""BERT as a `ModelAdapter` over Hugging Face's `BertForSequenceClassification`.

The content of a text is its tokens without [CLS]; [CLS] is the class token, at position 0, as the pooler reads it.
Segment ids are all 0, and no token is padding. Post-norm: the attention input of a layer is its input.

Source: Devlin et al., BERT, arXiv 1810.04805. Attribute names are those of transformers 5.23.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from astra.config import ModelConfig
from astra.models import ModelShape
from astra.models.adapter import TextAdapter
from astra.models.block import Affine, Projections, TransformerBlock
from astra.models.weights import label_faults, length_faults, read_checkpoint, seeded

__all__ = ["CLASS_ID", "BertAdapter", "build_bert"]

CLASS_ID = 101
"""[CLS] in the vocabularies of the published models."""


class BertAdapter(TextAdapter):
    """A BERT classifier as embedding, blocks and head."""

    def __init__(self, model: BertForSequenceClassification, num_tokens: int | None = None):
        config: Any = model.config
        self.huggingface: Any = model
        self._embeddings: Any = model.bert.embeddings
        shape = ModelShape(
            family="bert",
            num_layers=config.num_hidden_layers,
            width=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_attention_heads,
            head_width=config.hidden_size // config.num_attention_heads,
            mlp_width=config.intermediate_size,
            num_content_tokens=num_tokens or config.max_position_embeddings - 1,
            num_class_tokens=1,
            num_outputs=config.num_labels,
            causal=False,
            vocabulary=config.vocab_size,
        )
        super().__init__(shape, [_block(layer) for layer in model.bert.encoder.layer])

    def embed_content(self, inputs: Tensor, tokens: range, first_row: int = 0) -> Tensor:
        """Embed the ids of `tokens`; `inputs` [B, rows] begins at token `first_row`. Positions are one higher."""
        return self._embed(inputs[:, tokens.start - first_row : tokens.stop - first_row], 1 + tokens.start)

    def embed_class(self, batch: int) -> Tensor:
        """Return the embedding of [CLS] at position 0, [B, 1, D]."""
        return self._embed(torch.full((batch, 1), CLASS_ID, device=self._embeddings.word_embeddings.weight.device), 0)

    def head(self, x: Tensor) -> Tensor:
        """Apply pooler and classifier."""
        pooler: Any = self.huggingface.bert.pooler
        logits: Tensor = self.huggingface.classifier(pooler.activation(pooler.dense(x)))
        return logits

    def _embed(self, ids_BT: Tensor, first_position: int) -> Tensor:
        parts = self._embeddings
        positions_TD = parts.position_embeddings.weight[first_position : first_position + ids_BT.shape[1]]
        x_BTD: Tensor = parts.LayerNorm(
            parts.word_embeddings(ids_BT) + parts.token_type_embeddings.weight[0] + positions_TD
        )
        return x_BTD


def build_bert(config: ModelConfig) -> BertForSequenceClassification:
    """Build a preset with seeded weights, or read the checkpoint that `config` names.

    Raises:
        ConfigError: The checkpoint is missing, damaged, not a BERT, or does not fit `config`.
    """

    def faults(folder: Path, found: Any) -> list[str]:
        lengths = length_faults(config, folder, found.max_position_embeddings)
        return lengths + label_faults(config, folder, found)

    if config.checkpoint:
        checkpoint: BertForSequenceClassification = read_checkpoint(BertForSequenceClassification, config, faults)
        return checkpoint
    model = seeded(lambda: BertForSequenceClassification(_config(config)), config.seed)
    _fill_buffers(model)
    return model


def _config(config: ModelConfig) -> BertConfig:
    """Describe a preset; a text longer than published models take gets positions of its own."""
    preset = config.preset
    return BertConfig(
        vocab_size=preset.vocabulary,
        hidden_size=preset.width,
        num_hidden_layers=preset.num_layers,
        num_attention_heads=preset.num_heads,
        intermediate_size=preset.mlp_width,
        max_position_embeddings=max(preset.positions or 0, config.num_content_tokens + 1),
        num_labels=config.num_classes,  # type: ignore[call-arg]  # taken by the parent class
    )


def _fill_buffers(model: BertForSequenceClassification) -> None:
    """Number positions and segments, which the library's own forward reads."""
    embeddings: Any = model.bert.embeddings
    embeddings.position_ids = torch.arange(embeddings.position_ids.shape[1])[None]
    embeddings.token_type_ids = torch.zeros_like(embeddings.position_ids)


def _block(layer: Any) -> TransformerBlock:
    """Say which matrix of an encoder layer is which."""
    attention = layer.attention.self
    projections = Projections(
        query_map=_affine(attention.query),
        key_map=_affine(attention.key),
        value_map=_affine(attention.value),
        output_map=_affine(layer.attention.output.dense),
        up_map=_affine(layer.intermediate.dense),
        down_map=_affine(layer.output.dense),
        activation=layer.intermediate.intermediate_act_fn,
        head_width=attention.attention_head_size,
    )
    return TransformerBlock(projections, layer.attention.output.LayerNorm, layer.output.LayerNorm, post_norm=True)


def _affine(linear: Any) -> Affine:
    return Affine(linear.weight, linear.bias)
