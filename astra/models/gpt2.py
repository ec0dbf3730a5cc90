"""GPT-2 as a `ModelAdapter` over Hugging Face's `GPT2LMHeadModel`.

Its matrices are stored [in, out], and queries, keys and values in one; their transposes and thirds are views. The head
is the token embedding again, as in the published model.

Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019. Attribute names are those of
transformers 5.23.
"""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from astra.config import ModelConfig
from astra.models import ModelShape
from astra.models.adapter import TextAdapter
from astra.models.block import Affine, Projections, TransformerBlock
from astra.models.weights import length_faults, read_checkpoint, seeded

__all__ = ["GPT2Adapter", "build_gpt2"]


class GPT2Adapter(TextAdapter):
    """GPT-2 as embedding, blocks and head."""

    def __init__(self, model: GPT2LMHeadModel, num_tokens: int | None = None):
        config: Any = model.config
        self.huggingface = model
        self._embeddings: Any = model.transformer
        shape = ModelShape(
            family="gpt2",
            num_layers=config.n_layer,
            width=config.n_embd,
            num_heads=config.n_head,
            num_kv_heads=config.n_head,
            head_width=config.n_embd // config.n_head,
            mlp_width=config.n_inner or 4 * config.n_embd,
            num_content_tokens=num_tokens or config.n_positions,
            num_class_tokens=0,
            num_outputs=config.vocab_size,
            causal=True,
            vocabulary=config.vocab_size,
        )
        super().__init__(shape, [_block(layer) for layer in model.transformer.h])

    def embed_content(self, inputs: Tensor, tokens: range, first_row: int = 0) -> Tensor:
        """Embed the ids of `tokens`; `inputs` [B, rows] begins at token `first_row`."""
        own_BT = inputs[:, tokens.start - first_row : tokens.stop - first_row]
        x_BTD: Tensor = self._embeddings.wte(own_BT) + self._embeddings.wpe.weight[tokens.start : tokens.stop]
        return x_BTD

    def head(self, x: Tensor) -> Tensor:
        """Apply the final norm and score every token of the vocabulary."""
        logits: Tensor = self.huggingface.lm_head(self._embeddings.ln_f(x))
        return logits


def build_gpt2(config: ModelConfig) -> GPT2LMHeadModel:
    """Build a preset with seeded weights, or read the checkpoint that `config` names.

    Raises:
        ConfigError: The checkpoint is missing, damaged, not a GPT-2, or does not fit `config`.
    """
    if config.checkpoint:
        checkpoint: GPT2LMHeadModel = read_checkpoint(
            GPT2LMHeadModel, config, lambda folder, found: _faults(config, folder, found)
        )
        return checkpoint
    return seeded(lambda: GPT2LMHeadModel(_config(config)), config.seed)


def _config(config: ModelConfig) -> GPT2Config:
    """Describe a preset; a text longer than the published model takes gets positions of its own."""
    preset = config.preset
    return GPT2Config(
        vocab_size=preset.vocabulary,
        n_positions=max(preset.positions or 0, config.num_content_tokens),
        n_embd=preset.width,
        n_layer=preset.num_layers,
        n_head=preset.num_heads,
        bos_token_id=preset.vocabulary - 1,
        eos_token_id=preset.vocabulary - 1,
    )


def _faults(config: ModelConfig, folder: Path, found: Any) -> list[str]:
    """Refuse what the adapter would compute otherwise than the library."""
    faults = length_faults(config, folder, found.n_positions)
    unusual = {
        "scale_attn_weights": (found.scale_attn_weights, True),
        "scale_attn_by_inverse_layer_idx": (found.scale_attn_by_inverse_layer_idx, False),
    }
    for field, (value, wanted) in unusual.items():
        if value != wanted:
            faults.append(f"{folder}/config.json: {field} must be {wanted}, got {value}; use a plain GPT-2")
    return faults


def _block(layer: Any) -> TransformerBlock:
    """Say which part of which matrix is which."""
    attention, mlp = layer.attn, layer.mlp
    fused, width = _affine(attention.c_attn), attention.embed_dim
    projections = Projections(
        query_map=fused.outputs(range(width)),
        key_map=fused.outputs(range(width, 2 * width)),
        value_map=fused.outputs(range(2 * width, 3 * width)),
        output_map=_affine(attention.c_proj),
        up_map=_affine(mlp.c_fc),
        down_map=_affine(mlp.c_proj),
        activation=mlp.act,
        head_width=attention.head_dim,
    )
    return TransformerBlock(projections, layer.ln_1, layer.ln_2)


def _affine(conv: Any) -> Affine:
    """Turn a `Conv1D`, whose weight is [in, out], into a map."""
    return Affine(conv.weight.t(), conv.bias)
