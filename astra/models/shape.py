"""The sizes of a model, and what its matrices come to: of one that is here, or of one that is only planned. Pure."""

from dataclasses import dataclass

from astra.config import ModelConfig

__all__ = ["ModelShape", "planned_shape"]


@dataclass(frozen=True)
class ModelShape:
    """The numbers that traffic formulas, codebooks and partitions need."""

    family: str
    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    """Heads of keys and values; fewer than `num_heads` where groups of query heads share them."""
    head_width: int
    mlp_width: int
    """Hidden units of the MLP."""
    num_content_tokens: int
    """Tokens that come from the input and are split over the ranks; class tokens are not among them."""
    num_class_tokens: int
    num_outputs: int
    """Classes, or the vocabulary of a language model."""
    causal: bool
    vocabulary: int = 0
    """Rows of the token embedding; 0 for images."""

    @property
    def num_tokens(self) -> int:
        """All tokens of one input: class and content."""
        return self.num_class_tokens + self.num_content_tokens

    @property
    def answer_token(self) -> int:
        """Index of the row that `head` reads, among all tokens in order: the last if causal, else the class token."""
        return -1 if self.causal else 0

    @property
    def kv_width(self) -> int:
        """Width of one token's keys, and of its values."""
        return self.num_kv_heads * self.head_width

    @property
    def query_weights(self) -> int:
        """Weights of a layer's projection to queries, and of that from the context."""
        return self.width * self.num_heads * self.head_width

    @property
    def key_value_weights(self) -> int:
        """Weights of a layer's projection to keys and values."""
        return 2 * self.width * self.kv_width

    @property
    def mlp_weights(self) -> int:
        """Weights of a layer's MLP."""
        matrices = 3 if self.family == "llama" else 2  # one of them gates
        return matrices * self.width * self.mlp_width

    @property
    def turns_keys(self) -> bool:
        """Whether positions turn keys, so that those of equal rows differ (see `Block.turns_keys`)."""
        return self.family == "llama"

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's matrices: multiplications with additions that a token takes, attention left out."""
        return 2 * self.query_weights + self.key_value_weights + self.mlp_weights


def planned_shape(config: ModelConfig) -> ModelShape:
    """Return the shape of the model that `config` names without making it, for predictions."""
    preset, causal = config.preset, config.family in ("gpt2", "llama")
    return ModelShape(
        family=config.family,
        num_layers=preset.num_layers,
        width=preset.width,
        num_heads=preset.num_heads,
        num_kv_heads=preset.num_kv_heads,
        head_width=preset.width // preset.num_heads,
        mlp_width=preset.mlp_width,
        num_content_tokens=config.num_content_tokens,
        num_class_tokens=0 if causal else 1,
        num_outputs=preset.vocabulary if causal else config.num_classes,
        causal=causal,
        vocabulary=preset.vocabulary,
    )
