"""Llama as a `ModelAdapter` over Hugging Face's `LlamaForCausalLM`: RMSNorm, RoPE, grouped-query attention, gated MLP.

Source: Touvron et al., LLaMA, arXiv 2302.13971; grouped queries: Ainslie et al., arXiv 2305.13245. Attribute names are
those of transformers 5.23.
"""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from astra.config import ModelConfig
from astra.models import ModelShape
from astra.models.adapter import TextAdapter
from astra.models.block import Affine, Projections, Rotary, TransformerBlock
from astra.models.weights import length_faults, read_checkpoint, seeded

__all__ = ["LlamaAdapter", "build_llama"]

FIXED_ANGLES = ("default", "linear", "llama3", "proportional")
"""Kinds of RoPE whose angles do not depend on the length of the text."""


class LlamaAdapter(TextAdapter):
    """Llama as embedding, blocks and head."""

    def __init__(self, model: LlamaForCausalLM, num_tokens: int | None = None):
        config: Any = model.config
        self.huggingface = model
        self._embeddings: Any = model.model
        shape = ModelShape(
            family="llama",
            num_layers=config.num_hidden_layers,
            width=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_width=config.head_dim,
            mlp_width=config.intermediate_size,
            num_content_tokens=num_tokens or config.max_position_embeddings,
            num_class_tokens=0,
            num_outputs=config.vocab_size,
            causal=True,
            vocabulary=config.vocab_size,
        )
        angles: Any = model.model.rotary_emb
        rotary = Rotary(angles.inv_freq, angles.attention_scaling)
        super().__init__(shape, [_block(layer, rotary) for layer in model.model.layers])

    def embed_content(self, inputs: Tensor, tokens: range, first_row: int = 0) -> Tensor:
        """Embed the ids of `tokens`; `inputs` [B, rows] begins at token `first_row`. Positions come in attention."""
        x_BTD: Tensor = self._embeddings.embed_tokens(inputs[:, tokens.start - first_row : tokens.stop - first_row])
        return x_BTD

    def head(self, x: Tensor) -> Tensor:
        """Apply the final norm and score every token of the vocabulary."""
        logits: Tensor = self.huggingface.lm_head(self._embeddings.norm(x))
        return logits


def build_llama(config: ModelConfig) -> LlamaForCausalLM:
    """Build a preset with seeded weights, or read the checkpoint that `config` names.

    Raises:
        ConfigError: The checkpoint is missing, damaged, not a Llama, or does not fit `config`.
    """
    if config.checkpoint:
        checkpoint: LlamaForCausalLM = read_checkpoint(
            LlamaForCausalLM, config, lambda folder, found: _faults(config, folder, found)
        )
        return checkpoint
    hf_config = _config(config)
    model = seeded(lambda: LlamaForCausalLM(hf_config), config.seed)
    body: Any = model.model
    body.rotary_emb = type(body.rotary_emb)(config=hf_config)
    return model


def _config(config: ModelConfig) -> LlamaConfig:
    preset = config.preset
    return LlamaConfig(
        vocab_size=preset.vocabulary,
        hidden_size=preset.width,
        intermediate_size=preset.mlp_width,
        num_hidden_layers=preset.num_layers,
        num_attention_heads=preset.num_heads,
        num_key_value_heads=preset.num_kv_heads,
        max_position_embeddings=max(2048, config.num_content_tokens),
    )


def _faults(config: ModelConfig, folder: Path, found: Any) -> list[str]:
    """Refuse what the adapter would compute otherwise than the library."""
    faults = length_faults(config, folder, found.max_position_embeddings)
    kind = found.rope_parameters["rope_type"]
    if kind not in FIXED_ANGLES:
        faults.append(
            f"{folder}/config.json: rope_type must be one of {', '.join(FIXED_ANGLES)}, got {kind!r}; "
            "use a model whose angles do not change with the length of the text"
        )
    return faults


def _block(layer: Any, rotary: Rotary) -> TransformerBlock:
    """Say which matrix of a decoder layer is which."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = Projections(
        query_map=_affine(attention.q_proj),
        key_map=_affine(attention.k_proj),
        value_map=_affine(attention.v_proj),
        output_map=_affine(attention.o_proj),
        gate_map=_affine(mlp.gate_proj),
        up_map=_affine(mlp.up_proj),
        down_map=_affine(mlp.down_proj),
        activation=mlp.act_fn,
        head_width=attention.head_dim,
        rotary=rotary,
    )
    return TransformerBlock(projections, layer.input_layernorm, layer.post_attention_layernorm)


def _affine(linear: Any) -> Affine:
    return Affine(linear.weight, linear.bias)
