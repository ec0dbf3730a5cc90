"""What a model must offer to be run by any strategy, and how to make, adapt and save one.

    ModelConfig --build_model--> Hugging Face model --adapt--> ModelAdapter        save_checkpoint: model -> folder

    legend: B batch, T tokens, D width, E keys and values side by side, H heads, d head width, C outputs

        inputs --embed_content--> x_BTD --block 0 .. L-1--> x_BTD --head--> logits_BC
                        one block:  u = attention_input(x)
                                    q, k, v = query(u), *key_value(u)
                                    a = after_attention(x, output(attend(q, k, v)))
                                    x = after_mlp(a, mlp(mlp_input(a)))

Two kinds of model. Classifiers (ViT, BERT) have a class token in front of the content, every token sees every other,
and `head` reads the class token. Causal language models (GPT-2, Llama) have none, a token sees only itself and earlier
ones, and `head` reads the last token. An adapter knows nothing of distribution: its blocks are functions of the
original weights, row by row except for attention itself, so that any rank can run them on any subset of tokens, and
`Block.shard` gives the part of a layer that some heads and hidden units make up.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from astra.config import ModelConfig
from astra.errors import ConfigError
from astra.memory import spare_bytes
from astra.model_faults import model_faults, planning_faults
from astra.models.shape import ModelShape, planned_shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "Block",
    "BlockShard",
    "ModelAdapter",
    "ModelShape",
    "adapt",
    "build_model",
    "load_model",
    "planned_shape",
    "save_checkpoint",
]


class BlockShard(Protocol):
    """Some heads and hidden units of a layer, as views of its weights."""

    def query(self, u_BTD: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return q_BHTd of the shard's heads."""

    def key_value(self, u_BTD: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return k and v for `attend`: the key/value heads that the shard's heads read.

        As many heads as the query has, or a divisor; where the heads of a shard do not fall into whole groups, the
        shared ones are repeated.
        """

    def output(self, context_BTE: Tensor) -> Tensor:
        """Return what these heads' context adds to the output, [B, T, D], without the bias."""

    def mlp(self, h_BTD: Tensor) -> Tensor:
        """Return what these hidden units add to the MLP's output, [B, T, D], without the last bias."""


class Block(Protocol):
    """One Transformer layer, taken apart at its attention.

    `positions` [T] are the absolute positions of the rows, for models that turn queries and keys by them (RoPE); None
    numbers the rows from 0. Other models ignore it: their positions are in the embedding.
    """

    @property
    def key_value_weight(self) -> Tensor:
        """[E, D], keys above values; put together on each call, so read it at load and not per request."""

    @property
    def key_value_bias(self) -> Tensor | None:
        """[E], or None for projections without bias."""

    @property
    def output_bias(self) -> Tensor | None:
        """[D], part of `output`; to be added once to a sum of shards."""

    @property
    def mlp_bias(self) -> Tensor | None:
        """[D], part of `mlp`; to be added once to a sum of shards."""

    @property
    def turns_keys(self) -> bool:
        """Whether `rotate` does anything: keys of equal rows then differ by position."""

    def attention_input(self, x_BTD: Tensor) -> Tensor:
        """Return u_BTD, what the projections read: norm 1 of x in a pre-norm model, x itself in a post-norm one."""

    def query(self, u_BTD: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return q_BHTd, with positions applied."""

    def key_value(self, u_BTD: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return k and v of the key/value heads, not repeated, with positions applied to k."""

    def key_value_unrotated(self, u_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return k and v before positions: affine in every row of u."""

    def rotate(self, k_BHTd: Tensor, positions: Tensor | None = None) -> Tensor:
        """Apply positions to unrotated keys; models without RoPE return them as they are."""

    def output(self, context_BTD: Tensor) -> Tensor:
        """Return the output projection of the context, with its bias."""

    def after_attention(self, x_BTD: Tensor, out_BTD: Tensor) -> Tensor:
        """Return a: residual, and the norm of a post-norm model. `out` is that of `output`."""

    def mlp_input(self, a_BTD: Tensor) -> Tensor:
        """Return what the MLP reads: norm 2 of a in a pre-norm model, a itself in a post-norm one."""

    def mlp(self, h_BTD: Tensor) -> Tensor:
        """Return the MLP's output, with its bias."""

    def after_mlp(self, a_BTD: Tensor, m_BTD: Tensor) -> Tensor:
        """Return the layer's output: residual, and the norm of a post-norm model. `m` is that of `mlp`."""

    def finish(self, x_BTD: Tensor, context_BTD: Tensor) -> Tensor:
        """Return the layer's output from its input and the context: all of the four steps above."""

    def shard(self, heads: range, hidden: range) -> BlockShard:
        """Return the part of the layer that these query heads and hidden units make up; either may be empty."""

    def sub_block(self, part: int, num_parts: int) -> "Block":
        """Return the layer of width D / num_parts that the diagonal blocks of its matrices make up.

        It reads and writes the part-th columns of x alone, and norms them alone. `num_parts` divides the heads, the
        key/value heads and the hidden units.
        """


class ModelAdapter(Protocol):
    """A model as its embedding, its blocks and its head."""

    @property
    def shape(self) -> ModelShape:
        """Its sizes."""

    @property
    def blocks(self) -> Sequence[Block]:
        """Its layers in order."""

    def input_rows(self, tokens: range) -> range:
        """Return the rows of an input that hold content `tokens`: pixel rows of an image, token ids of a text."""

    def embed_content(self, inputs: Tensor, tokens: range, first_row: int = 0) -> Tensor:
        """Return x_BTD of the content `tokens` alone.

        `inputs` are pixels [B, 3, rows, columns] or token ids [B, rows] (int64): the whole input, or only a band of
        its rows that starts at row `first_row` and covers `input_rows(tokens)`.
        """

    def embed_class(self, batch: int) -> Tensor:
        """Return the class token as it enters layer 0, [B, num_class_tokens, D]; no rows for causal models."""

    def embed(self, inputs: Tensor) -> Tensor:
        """Return x_BTD of a whole input: class tokens, then content."""

    def head(self, x: Tensor) -> Tensor:
        """Return logits [..., C] of rows [..., D] after the last layer.

        A classifier's answer is that of its class token; a language model scores the next token of every row.
        """

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits_BC of whole inputs, on this one device: what `single` computes."""

    def packed_if(self, spare_bytes: int) -> "ModelAdapter":
        """Return the same model, packed for faster products if that takes at most half of so many bytes."""


def build_model(config: ModelConfig) -> "PreTrainedModel":
    """Make the Hugging Face model that `config` names, in fp32, ready to be trained: its parameters require gradients.

    Without a checkpoint its weights follow from the seed, and are the same on every rank. Dropout is off.

    Raises:
        ConfigError: The fields do not go together, the shape is one that is only planned with, or the checkpoint is
            missing, unreadable, out of reach, or not what `config` says.
    """
    if faults := model_faults("config", config) or planning_faults("config", config):
        raise ConfigError(faults)
    from astra.models.loaders import BUILDERS  # transformers takes seconds to import; checks of configs go without

    return BUILDERS[config.family](config)


def adapt(model: "PreTrainedModel", num_tokens: int | None = None) -> ModelAdapter:
    """See a Hugging Face model as its embedding, blocks and head: views of its weights, through which gradients flow.

    Cheap, and to be done again after every step of an optimiser and every move to another device. Dropout is left out.

    Args:
        model: A ViT or BERT classifier, a GPT-2 or a Llama.
        num_tokens: Content tokens of a text; None for as many as the model has positions. An image decides by itself.

    Raises:
        ConfigError: The model is of another type.
    """
    from astra.models.loaders import adapter_of

    return adapter_of(model, num_tokens)


def load_model(config: ModelConfig) -> ModelAdapter:
    """Make and adapt the model that `config` names, frozen, and packed (`models.packing`) if there is memory for it.

    Raises:
        ConfigError: See `build_model`.
    """
    return adapt(build_model(config).requires_grad_(False), config.num_tokens).packed_if(spare_bytes())


def save_checkpoint(folder: Path, model: "PreTrainedModel", *, tokenizer: str | None = None) -> None:
    """Write `config.json` and `model.safetensors` as Hugging Face saves them, each at once or not at all.

    Args:
        folder: Made if it is not there.
        model: Any Hugging Face model.
        tokenizer: What `tokenizer.json` beside them is to hold; None for a model without one.

    Raises:
        OSError: The folder cannot be written.
    """
    from astra.models.saving import save

    save(folder, model, tokenizer)
