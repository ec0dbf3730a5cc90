"""GPT-2 as a `ModelAdapter` over Hugging Face's `GPT2LMHeadModel`.

Its matrices are stored [in, out], and queries, keys and values in one; their transposes and thirds are views. The head
is the token embedding again, as in the published model.

Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019. Attribute names are those of
transformers 5.23.
"""

from typing import Any

from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from astra.config import ModelConfig
from astra.models.activation import activation_of
from astra.models.adapter import TextAdapter
from astra.models.affine import Affine
from astra.models.block import Projections, TransformerBlock
from astra.models.weights import read_checkpoint, seeded

__all__ = ["GPT2Adapter", "build_gpt2"]


class GPT2Adapter(TextAdapter):
    """GPT-2 as embedding, blocks and head."""

    def __init__(self, model: GPT2LMHeadModel, num_tokens: int | None = None):
        self._embeddings: Any = model.transformer
        blocks = [_block(layer) for layer in model.transformer.h]
        num_content_tokens = num_tokens or model.config.n_positions
        super().__init__(model, num_content_tokens, blocks, lambda x: model.lm_head(model.transformer.ln_f(x)))

    def embed_ids(self, ids_BT: Tensor, first_position: int) -> Tensor:
        """Add words and positions."""
        positions_TD = self._embeddings.wpe.weight[first_position : first_position + ids_BT.shape[1]]
        x_BTD: Tensor = self._embeddings.wte(ids_BT) + positions_TD
        return x_BTD


def build_gpt2(config: ModelConfig) -> GPT2LMHeadModel:
    """Build a preset with seeded weights, or read the checkpoint that `config` names.

    Raises:
        ConfigError: The checkpoint is missing, damaged, not a GPT-2, or does not fit `config`.
    """
    if config.checkpoint:
        return read_checkpoint(GPT2LMHeadModel, config)
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
        activation=activation_of(mlp.act),
        head_width=attention.head_dim,
    )
    return TransformerBlock(projections, layer.ln_1, layer.ln_2)


def _affine(conv: Any) -> Affine:
    """Turn a `Conv1D`, whose weight is [in, out], into a map."""
    return Affine(conv.weight.t(), conv.bias)
