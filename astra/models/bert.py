"""BERT as a `ModelAdapter` over Hugging Face's `BertForSequenceClassification`.

The content of a text is its tokens without [CLS]; [CLS] is the class token, at position 0, as the pooler reads it.
Segment ids are all 0, and no token is padding. Post-norm: the attention input of a layer is its input.

Source: Devlin et al., BERT, arXiv 1810.04805. Attribute names are those of transformers 5.23.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from astra.config import ModelConfig
from astra.models.activation import activation_of
from astra.models.adapter import TextAdapter
from astra.models.affine import Affine
from astra.models.block import Projections, TransformerBlock
from astra.models.weights import read_checkpoint, seeded

__all__ = ["CLASS_ID", "BertAdapter", "build_bert"]

CLASS_ID = 101
"""[CLS] in the vocabularies of the published models."""


class BertAdapter(TextAdapter):
    """A BERT classifier as embedding, blocks and head."""

    def __init__(self, model: BertForSequenceClassification, num_tokens: int | None = None):
        self._embeddings: Any = model.bert.embeddings
        body: Any = model.bert
        blocks = [_block(layer) for layer in body.encoder.layer]
        num_content_tokens = num_tokens or model.config.max_position_embeddings - 1
        super().__init__(
            model, num_content_tokens, blocks, lambda x: model.classifier(body.pooler.activation(body.pooler.dense(x)))
        )

    def embed_ids(self, ids_BT: Tensor, first_position: int) -> Tensor:
        """Add words, positions and segment 0, and norm them."""
        parts = self._embeddings
        positions_TD = parts.position_embeddings.weight[first_position : first_position + ids_BT.shape[1]]
        x_BTD: Tensor = parts.LayerNorm(
            parts.word_embeddings(ids_BT) + parts.token_type_embeddings.weight[0] + positions_TD
        )
        return x_BTD

    def embed_class(self, batch: int) -> Tensor:
        """Return the embedding of [CLS] at position 0, [B, 1, D]."""
        return self.embed_ids(torch.full((batch, 1), CLASS_ID, device=self.huggingface.device), 0)


def build_bert(config: ModelConfig) -> BertForSequenceClassification:
    """Build a preset with seeded weights, or read the checkpoint that `config` names.

    Raises:
        ConfigError: The checkpoint is missing, damaged, not a BERT, or does not fit `config`.
    """
    if config.checkpoint:
        return read_checkpoint(BertForSequenceClassification, config)
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
        query_map=Affine.of(attention.query),
        key_map=Affine.of(attention.key),
        value_map=Affine.of(attention.value),
        output_map=Affine.of(layer.attention.output.dense),
        up_map=Affine.of(layer.intermediate.dense),
        down_map=Affine.of(layer.output.dense),
        activation=activation_of(layer.intermediate.intermediate_act_fn),
        head_width=attention.attention_head_size,
    )
    return TransformerBlock(projections, layer.attention.output.LayerNorm, layer.output.LayerNorm, post_norm=True)
