"""What `astra bench` and `astra fit` are asked to do, as frozen and strict pydantic models.

Holds what one field can say about itself; `config_file` reads files and checks fields against one another.
Pure, and free of torch, so that checking a config takes a fraction of a second.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from astra import faults
from astra.errors import ConfigError

__all__ = [
    "PRESETS",
    "AstraConfig",
    "BenchConfig",
    "InputConfig",
    "ModelConfig",
    "Preset",
    "SequenceConfig",
    "SingleConfig",
    "StrategyConfig",
    "WireName",
]

WireName = Literal["fp32", "fp16", "int8", "int4"]
DEFAULT_NUM_CODEWORDS = 1024
MAX_NUM_CODEWORDS = 65536


@dataclass(frozen=True)
class Preset:
    """The sizes that fix a ViT's architecture; its MLP is four times as wide as the model."""

    patch_size: int
    """Pixels per side of the square patch that becomes one token."""
    width: int
    num_heads: int
    num_layers: int


PRESETS: dict[str, Preset] = {
    "tiny": Preset(patch_size=16, width=64, num_heads=4, num_layers=4),
    "small": Preset(patch_size=16, width=384, num_heads=6, num_layers=12),
    "base": Preset(patch_size=16, width=768, num_heads=12, num_layers=12),
}
"""`tiny` is for tests; `small` and `base` have the shapes of ViT-S/16 and ViT-B/16."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(_Section):
    """Which model: a preset with seeded weights, or a local checkpoint folder of that preset's shape."""

    family: Literal["vit"] = "vit"
    size: Literal["tiny", "small", "base"]
    image_size: int = Field(ge=1)
    """Pixels per side of the square input image."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Draws the weights (without a checkpoint), the crops of the sample photographs and the k-means start."""
    num_labels: int = Field(default=1000, ge=1)
    checkpoint: str | None = Field(default=None, min_length=1)
    """Folder with `config.json` and `model.safetensors` as Hugging Face saves them."""

    @property
    def preset(self) -> Preset:
        """The architecture's sizes."""
        return PRESETS[self.size]


class InputConfig(_Section):
    """Which images, and where they are when a request begins."""

    images: str = Field(default="sample", min_length=1)
    """`sample`: the photographs that scikit-learn ships; anything else is a folder of images."""
    placement: Literal["replicated", "terminal"] = "replicated"
    """`replicated`: every rank holds the image; `terminal`: rank 0 sends peers their part, which is timed."""
    encoding: Literal["raw", "png"] = "raw"
    """How `terminal` sends pixels: 3 bytes a pixel, or PNG (lossless)."""


class SingleConfig(_Section):
    """The whole model on rank 0."""

    name: Literal["single"] = "single"

    @property
    def settings(self) -> str:
        """What tells two entries of this strategy apart in a table."""
        return ""


class SequenceConfig(_Section):
    """Each rank keeps its slice of tokens and all-gathers activations in every layer."""

    name: Literal["sequence"] = "sequence"
    wire: WireName = "fp32"

    @property
    def settings(self) -> str:
        """What tells two entries of this strategy apart in a table."""
        return f"wire={self.wire}"


def _power_of_two(value: Any) -> Any:
    """Refuse whole numbers that are no power of two; other types are left to pydantic's own rules."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and not (2 <= value <= MAX_NUM_CODEWORDS and value & (value - 1) == 0):
        raise faults.rule_error(
            f"a power of two from 2 to {MAX_NUM_CODEWORDS}", f"the paper uses {DEFAULT_NUM_CODEWORDS}"
        )
    return value


class AstraConfig(_Section):
    """Each rank keeps its slice of tokens and sends vector-quantised codes of the attention input."""

    name: Literal["astra"] = "astra"
    num_groups: int = Field(default=1, ge=1)
    """Sub-vectors per token, each with a codebook of its own; divides the model's width."""
    num_codewords: Annotated[int, BeforeValidator(_power_of_two)] = DEFAULT_NUM_CODEWORDS

    @property
    def settings(self) -> str:
        """What tells two entries of this strategy apart in a table."""
        codewords = "" if self.num_codewords == DEFAULT_NUM_CODEWORDS else f" K={self.num_codewords}"
        return f"G={self.num_groups}{codewords}"


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


StrategyConfig = Annotated[
    SingleConfig | SequenceConfig | AstraConfig, Field(discriminator="name"), BeforeValidator(_named)
]
"""One entry of `strategies`; a bare name stands for that strategy with its defaults."""


def _even_or_weights(value: Any) -> Any:
    if value == "even":
        return value
    weights = list(value) if isinstance(value, (list, tuple)) else []
    if not weights or not all(_is_weight(weight) for weight in weights):
        raise faults.rule_error(
            "'even' or a list of numbers greater than 0, one per device",
            "a device with weight 2 gets twice the tokens of one with weight 1",
        )
    return tuple(float(weight) for weight in weights)


def _is_weight(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


class BenchConfig(_Section):
    """One benchmark: every strategy serves the same requests in turn."""

    model: ModelConfig
    input: InputConfig = InputConfig()
    strategies: tuple[StrategyConfig, ...] = Field(min_length=1)
    requests: int = Field(default=10, ge=1)
    """Measured requests per strategy."""
    warmup: int = Field(default=2, ge=0)
    """Requests per strategy that are served first and not counted."""
    partition: Annotated[Literal["even"] | tuple[float, ...], BeforeValidator(_even_or_weights)] = "even"
    """How tokens are dealt to the ranks."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Longest wait for any one message, and for every rank to show up."""

    def weights(self, world_size: int) -> tuple[float, ...]:
        """Return the share of each of `world_size` ranks; ConfigError if the list has another length."""
        if self.partition == "even":
            return (1.0,) * world_size
        if len(self.partition) != world_size:
            raise ConfigError(
                [
                    f"config: partition must be 'even' or a list of {world_size} weights, one per device, "
                    f"got {list(self.partition)!r}; make its length the number of devices"
                ]
            )
        return self.partition
