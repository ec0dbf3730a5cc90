"""The Vision Transformer as a `ModelAdapter` over Hugging Face's `ViTForImageClassification`.

The Hugging Face module keeps the weights; everything here calls its sub-modules or reads its parameters, and copies
none. The three input projections stay apart: fused into one product they took the same 4.5 ms at 257 tokens of
ViT-Base. Dropout is left out, so an adapter is for inference. Attribute names are those of transformers 5.23.

Source: Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv 2010.11929.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification
from transformers.utils import logging as transformers_logging

from astra.config import ModelConfig
from astra.errors import ConfigError
from astra.models import ModelShape
from astra.models.adapter import TransformerAdapter
from astra.models.block import Affine, Projections, TransformerBlock
from astra.partition import band

__all__ = ["ViTAdapter", "load_vit"]


class ViTAdapter(TransformerAdapter):
    """A ViT classifier as embedding, blocks and head."""

    def __init__(self, model: ViTForImageClassification):
        config: Any = model.config
        self.huggingface = model
        self._embeddings: Any = model.vit.embeddings
        self._patch: int = config.patch_size
        self._num_columns: int = config.image_size // config.patch_size
        shape = ModelShape(
            family="vit",
            num_layers=config.num_hidden_layers,
            width=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_attention_heads,
            head_width=config.hidden_size // config.num_attention_heads,
            mlp_width=config.intermediate_size,
            num_content_tokens=self._num_columns**2,
            num_class_tokens=1,
            num_outputs=config.num_labels,
            causal=False,
        )
        super().__init__(shape, [_block(layer) for layer in model.vit.layers])

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

    def head(self, class_BD: Tensor) -> Tensor:
        """Apply the final norm and the classifier."""
        logits_BC: Tensor = self.huggingface.classifier(self.huggingface.vit.layernorm(class_BD))
        return logits_BC

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
        query_map=_affine(attention.q_proj),
        key_map=_affine(attention.k_proj),
        value_map=_affine(attention.v_proj),
        output_map=_affine(attention.o_proj),
        up_map=_affine(mlp.fc1),
        down_map=_affine(mlp.fc2),
        activation=mlp.activation_fn,
        head_width=attention.head_dim,
    )
    return TransformerBlock(projections, layer.layernorm_before, layer.layernorm_after)


def _affine(linear: Any) -> Affine:
    return Affine(linear.weight, linear.bias)


def load_vit(config: ModelConfig) -> ViTAdapter:
    """Build a preset with seeded weights, or read the checkpoint folder that `config` names.

    Raises:
        ConfigError: The checkpoint is missing, damaged, not a ViT, or does not fit `config`.
    """
    model = _from_checkpoint(config, Path(config.checkpoint)) if config.checkpoint else _from_seed(config)
    model.train(False).requires_grad_(False)
    return ViTAdapter(model)


def _from_seed(config: ModelConfig) -> ViTForImageClassification:
    """Build a preset with weights drawn from `config.seed`: the same on every rank with the same torch.

    Matrices and embeddings are normal with ViT's own 0.02, biases 0, norms 1. Made on the meta device and filled in
    the order of the parameters: ViT-Base takes 1 s, where the library's initialisation draws everything twice. Random
    weights attend almost evenly, so agreement between strategies says little about a trained model; speed is the same.
    """
    preset = config.preset
    hf_config = ViTConfig(
        image_size=config.image_size,
        patch_size=preset.patch_size,
        hidden_size=preset.width,
        num_hidden_layers=preset.num_layers,
        num_attention_heads=preset.num_heads,
        intermediate_size=4 * preset.width,
        num_labels=config.num_labels,  # type: ignore[call-arg]  # taken by the parent class
    )
    with torch.device("meta"):
        model = ViTForImageClassification(hf_config)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, hf_config.initializer_range, generator=generator)
            else:
                parameter.fill_(1.0 if "layernorm" in name and name.endswith("weight") else 0.0)
    return model


def _from_checkpoint(config: ModelConfig, folder: Path) -> ViTForImageClassification:
    """Read `config.json` and `model.safetensors` and refuse whatever does not fit."""
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        advice = "name a folder saved by save_pretrained"
        raise ConfigError([f"{folder}: checkpoint must hold {name}, got no such file; {advice}" for name in missing])
    # The terminal belongs to the display of the run, and what the library would warn of is a fault here.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        loaded: Any = ViTForImageClassification.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            [f"{folder}: checkpoint must be a readable ViT, got {error}; save it again with save_pretrained"]
        ) from error
    model: ViTForImageClassification = loaded[0]
    faults = _checkpoint_faults(config, folder, model.config, loaded[1])
    if faults:
        raise ConfigError(faults)
    _resize_positions(model, config.image_size)
    return model


def _checkpoint_faults(config: ModelConfig, folder: Path, found: Any, loading: dict[str, Any]) -> list[str]:
    """List every way in which a checkpoint that could be read is not what `config` says."""
    faults = []
    if found.model_type != "vit":
        faults.append(f"{folder}/config.json: model_type must be 'vit', got {found.model_type!r}; use a ViT")
    lost = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in loading[kind])
    if lost:
        faults.append(f"{folder}: checkpoint must hold every weight, got none for {lost}; save the whole classifier")
    if found.num_labels != config.num_labels:
        faults.append(
            f"{folder}: num_labels must be that of the checkpoint, {found.num_labels}, got {config.num_labels}; "
            "set model.num_labels"
        )
    if config.image_size % found.patch_size:
        faults.append(
            f"{folder}: image_size must be a multiple of the checkpoint's patch, {found.patch_size}, "
            f"got {config.image_size}; set model.image_size"
        )
    return faults


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
