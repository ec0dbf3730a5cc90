"""Llama as a `ModelAdapter` over Hugging Face's `LlamaForCausalLM`: RMSNorm, RoPE, grouped-query attention, gated MLP.

Source: Touvron et al., LLaMA, arXiv 2302.13971; grouped queries: Ainslie et al., arXiv 2305.13245. Attribute names are
those of transformers 5.23.
"""

from typing import Any

from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from astra.config import ModelConfig
from astra.models.activation import activation_of
from astra.models.adapter import TextAdapter
from astra.models.affine import Affine
from astra.models.block import Projections, Rotary, TransformerBlock
from astra.models.weights import read_checkpoint, seeded
from astra.presets import Preset

__all__ = ["LlamaAdapter", "build_llama", "llama_config"]


class LlamaAdapter(TextAdapter):
    """Llama as embedding, blocks and head."""

    def __init__(self, model: LlamaForCausalLM, num_tokens: int | None = None):
        self._embeddings: Any = model.model
        angles: Any = model.model.rotary_emb
        rotary = Rotary(angles.inv_freq, angles.attention_scaling)
        blocks = [_block(layer, rotary) for layer in model.model.layers]
        num_content_tokens = num_tokens or model.config.max_position_embeddings
        super().__init__(model, num_content_tokens, blocks, lambda x: model.lm_head(model.model.norm(x)))

    def embed_ids(self, ids_BT: Tensor, first_position: int) -> Tensor:
        """Look words up; positions come in attention."""
        x_BTD: Tensor = self._embeddings.embed_tokens(ids_BT)
        return x_BTD


def build_llama(config: ModelConfig) -> LlamaForCausalLM:
    """Build a preset with seeded weights, or read the checkpoint that `config` names.

    Raises:
        ConfigError: The checkpoint is missing, damaged, not a Llama, or does not fit `config`.
    """
    if config.checkpoint:
        return read_checkpoint(LlamaForCausalLM, config)
    hf_config = llama_config(config.preset, max(2048, config.num_content_tokens))
    model = seeded(lambda: LlamaForCausalLM(hf_config), config.seed)
    body: Any = model.model
    body.rotary_emb = type(body.rotary_emb)(config=hf_config)
    return model


def llama_config(preset: Preset, num_positions: int, **others: Any) -> LlamaConfig:
    """Describe a Llama of these sizes; `others` are the library's own names."""
    return LlamaConfig(
        vocab_size=preset.vocabulary,
        hidden_size=preset.width,
        intermediate_size=preset.mlp_width,
        num_hidden_layers=preset.num_layers,
        num_attention_heads=preset.num_heads,
        num_key_value_heads=preset.num_kv_heads,
        max_position_embeddings=num_positions,
        **others,
    )


def _block(layer: Any, rotary: Rotary) -> TransformerBlock:
    """Say which matrix of a decoder layer is which."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = Projections(
        query_map=Affine.of(attention.q_proj),
        key_map=Affine.of(attention.k_proj),
        value_map=Affine.of(attention.v_proj),
        output_map=Affine.of(attention.o_proj),
        gate_map=Affine.of(mlp.gate_proj),
        up_map=Affine.of(mlp.up_proj),
        down_map=Affine.of(mlp.down_proj),
        activation=activation_of(mlp.act_fn),
        head_width=attention.head_dim,
        rotary=rotary,
    )
    return TransformerBlock(projections, layer.input_layernorm, layer.post_attention_layernorm)
