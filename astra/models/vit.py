"""The Vision Transformer as a `ModelAdapter` over Hugging Face's `ViTForImageClassification`.

The Hugging Face module keeps the weights; everything here calls its sub-modules or reads its parameters, and copies
none. The three input projections stay apart: fused into one product they took the same 4.5 ms at 257 tokens of
ViT-Base. Dropout is left out, so an adapter is for inference. Attribute names are those of transformers 5.23.

Source: Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv 2010.11929.
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from astra.config import ModelConfig
from astra.models.activation import activation_of
from astra.models.adapter import TransformerAdapter
from astra.models.affine import Affine
from astra.models.block import Projections, TransformerBlock
from astra.models.weights import read_checkpoint, seeded
from astra.partition import band

__all__ = ["ViTAdapter", "build_vit"]


class ViTAdapter(TransformerAdapter):
    """A ViT classifier as embedding, blocks and head."""

    def __init__(self, model: ViTForImageClassification):
        config: Any = model.config
        self._embeddings: Any = model.vit.embeddings
        self._patch: int = config.patch_size
        self._num_columns: int = config.image_size // config.patch_size
        blocks = [_block(layer) for layer in model.vit.layers]
        super().__init__(model, self._num_columns**2, blocks, lambda x: model.classifier(model.vit.layernorm(x)))

    def input_rows(self, tokens: range) -> range:
        """Return the pixel rows of the patches that `tokens` are made from."""
        patch_rows = band(tokens, self._num_columns)
        return range(patch_rows.start * self._patch, patch_rows.stop * self._patch)

    def embed_content(self, inputs: Tensor, tokens: range, first_row: int = 0) -> Tensor:
        """Embed the patches of `tokens` and no others.

        Args:
            inputs: Normalised pixels [B, 3, rows, image_size]; pixel row 0 of it is row `first_row` of the image.
            tokens: Content tokens, numbered row by row over the patch grid.
            first_row: A multiple of the patch size.
        """
        rows = self.input_rows(tokens)
        patches_BTP = self._patches(inputs[:, :, rows.start - first_row : rows.stop - first_row])
        first_token = rows.start // self._patch * self._num_columns
        projection = self._embeddings.patch_embeddings.projection
        own_BTP = patches_BTP[:, tokens.start - first_token : tokens.stop - first_token]
        positions_1TD: Tensor = self._embeddings.position_embeddings[:, 1 + tokens.start : 1 + tokens.stop]
        return positions_1TD + F.linear(own_BTP, projection.weight.flatten(1), projection.bias)

    def embed_class(self, batch: int) -> Tensor:
        """Return the class token with its position, [B, 1, D]."""
        class_11D: Tensor = self._embeddings.cls_token + self._embeddings.position_embeddings[:, :1]
        return class_11D.expand(batch, -1, -1)

    def _patches(self, pixels_BCYX: Tensor) -> Tensor:
        """Cut whole patch rows into [B, patches, 3 · patch · patch], in the order of the convolution's weight."""
        batch, channels, height, width = pixels_BCYX.shape
        size = self._patch
        grid = pixels_BCYX.reshape(batch, channels, height // size, size, width // size, size)
        return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * size * size)


def _block(layer: Any) -> TransformerBlock:
    """Say which matrix of an encoder layer is which."""
    attention, mlp = layer.attention, layer.mlp
    projections = Projections(
        query_map=Affine.of(attention.q_proj),
        key_map=Affine.of(attention.k_proj),
        value_map=Affine.of(attention.v_proj),
        output_map=Affine.of(attention.o_proj),
        up_map=Affine.of(mlp.fc1),
        down_map=Affine.of(mlp.fc2),
        activation=activation_of(mlp.activation_fn),
        head_width=attention.head_dim,
    )
    return TransformerBlock(projections, layer.layernorm_before, layer.layernorm_after)


def build_vit(config: ModelConfig) -> ViTForImageClassification:
    """Build a preset with seeded weights, or read the checkpoint that `config` names.

    Raises:
        ConfigError: The checkpoint is missing, damaged, not a ViT, or does not fit `config`.
    """
    if not config.checkpoint:
        return seeded(lambda: ViTForImageClassification(_config(config)), config.seed)
    model = read_checkpoint(ViTForImageClassification, config)
    _resize_positions(model, config.side)
    return model


def _config(config: ModelConfig) -> ViTConfig:
    preset = config.preset
    return ViTConfig(
        image_size=config.side,
        patch_size=preset.patch_size,
        hidden_size=preset.width,
        num_hidden_layers=preset.num_layers,
        num_attention_heads=preset.num_heads,
        intermediate_size=preset.mlp_width,
        num_labels=config.num_classes,  # type: ignore[call-arg]  # taken by the parent class
    )


def _resize_positions(model: ViTForImageClassification, image_size: int) -> None:
    """Interpolate the position embeddings to `image_size`, once, the way the library does on each call."""
    embeddings: Any = model.vit.embeddings
    config: Any = model.config
    if image_size == config.image_size:
        return
    num_tokens = (image_size // config.patch_size) ** 2
    with torch.no_grad():
        like_BTD = torch.empty(1, 1 + num_tokens, config.hidden_size)
        resized = embeddings.interpolate_pos_encoding(like_BTD, image_size, image_size)
    embeddings.position_embeddings = nn.Parameter(resized)
    embeddings.image_size = (image_size, image_size)
    config.image_size = image_size
