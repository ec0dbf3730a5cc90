"""What `astra bench`, `astra generate` and `astra fit` are asked to do, as frozen and strict pydantic models.

Holds what one field can say about itself; `config_file` reads files and checks fields against one another.
Reads nothing but the sizes of a checkpoint; free of torch, so that checking a config takes a fraction of a second.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from astra import faults
from astra.data_config import DataConfig
from astra.errors import ConfigError
from astra.failure_config import FailuresConfig
from astra.packaged import CheckpointName
from astra.presets import PRESETS, Family, Preset, Size
from astra.section import Section, named
from astra.stored_model import StoredModel, is_hub_name, read_stored_model
from astra.strategy_config import (
    AnyStrategy,
    AstraConfig,
    AutoConfig,
    BlockConfig,
    GalaxyConfig,
    PipelineConfig,
    PrismConfig,
    SequenceConfig,
    SingleConfig,
    Site,
    StrategySection,
    TensorConfig,
    WireName,
)

__all__ = [
    "AccuracyConfig",
    "AstraConfig",
    "AutoConfig",
    "BenchConfig",
    "BlockConfig",
    "Entry",
    "GalaxyConfig",
    "GenerationConfig",
    "InputConfig",
    "ModelConfig",
    "PipelineConfig",
    "PrismConfig",
    "SequenceConfig",
    "SingleConfig",
    "Site",
    "StrategyConfig",
    "TensorConfig",
    "WireName",
    "candidates_of",
    "model_of",
    "named_or_weights",
]

DEFAULT_NUM_LABELS = {"vit": 1000, "bert": 2}


class ModelConfig(Section):
    """Which model: a preset with seeded weights, or a checkpoint."""

    family: Family = "vit"
    size: Size | None = None
    """A preset; may be left out where `checkpoint` is a folder, whose `config.json` says it."""
    image_size: int | None = Field(default=None, ge=1)
    """Pixels per side of the square input image; only for ViT. None for that of the checkpoint's folder."""
    num_tokens: int | None = Field(default=None, ge=1)
    """Content tokens of one text, without BERT's class token; BERT, GPT-2 and Llama need it, ViT has none."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Draws the weights (without a checkpoint), the crops of the sample photographs and the k-means start."""
    num_labels: int | None = Field(default=None, ge=1)
    """Classes of a classifier; None for those of the checkpoint's folder, or without one 1,000 (ViT) or 2 (BERT).
    Language models have none."""
    checkpoint: CheckpointName | None = None
    """Folder with `config.json` and `model.safetensors` as Hugging Face saves them, `organisation/name` of a hub, or
    `packaged:` and the name of one that comes with this package."""

    @property
    def folder(self) -> Path | None:
        """Where the checkpoint lies; None without one, and for one on a hub."""
        return None if self.checkpoint is None or is_hub_name(self.checkpoint) else Path(self.checkpoint)

    def read_stored(self) -> StoredModel | None:
        """Read what `folder` says of its model; None without a folder.

        Raises:
            ConfigError: See `stored_model.read_stored_model`.
        """
        return None if self.folder is None else read_stored_model(self.folder, self.family)

    @property
    def preset(self) -> Preset:
        """The architecture's sizes: those of `size`, or of the checkpoint's folder."""
        if self.size is not None:
            return PRESETS[self.family][self.size]
        stored = self.read_stored()
        assert stored is not None, "`model_faults` asks for a size where there is no folder"
        return stored.preset

    @property
    def is_text(self) -> bool:
        """Whether inputs are token ids."""
        return self.family != "vit"

    @property
    def num_content_tokens(self) -> int:
        """Tokens of one input that are split over the ranks."""
        if self.num_tokens is not None:
            return self.num_tokens
        return int((self.side // self.preset.patch_size) ** 2)

    @property
    def side(self) -> int:
        """`image_size` of a model that has one: as given, or that of the checkpoint's folder."""
        stored = None if self.image_size else self.read_stored()
        side = stored.image_size if stored else self.image_size
        assert side is not None, "only for ViT, whose image_size `model_faults` asks for"
        return side

    @property
    def num_classes(self) -> int:
        """Outputs of a classifier."""
        stored = None if self.num_labels else self.read_stored()
        return (stored.num_labels if stored else self.num_labels) or DEFAULT_NUM_LABELS[self.family]


def model_of(model: ModelConfig, strategy: StrategySection) -> ModelConfig:
    """Return the model that `strategy` runs: `model`, with the weights that were fine-tuned for it, if any."""
    return model if strategy.checkpoint is None else model.model_copy(update={"checkpoint": strategy.checkpoint})


class InputConfig(Section):
    """Which images or texts, and where they are when a request begins."""

    images: str = Field(default="sample", min_length=1)
    """For ViT. `sample`: the photographs that scikit-learn ships; anything else is a folder of images."""
    text: str = Field(default="sample", min_length=1)
    """For the others. `sample`: documentation of Python's standard library; anything else is a text file or a folder
    of them."""
    placement: Literal["replicated", "terminal"] = "replicated"
    """`replicated`: every rank holds the input; `terminal`: rank 0 sends peers their part, which is timed."""
    encoding: Literal["raw", "png"] = "raw"
    """How `terminal` sends pixels: 3 bytes a pixel, or PNG (lossless). Token ids are sent in as few bits as fit."""


class GenerationConfig(Section):
    """How texts go on after their `model.num_tokens` tokens; only for `astra generate`."""

    max_new_tokens: int = Field(ge=1)
    """Tokens of every continuation: always as many, also past an end of text, so that all strategies do equal work."""
    temperature: float = Field(default=0.0, ge=0)
    """Divides the scores before a token is drawn; 0 takes the best token."""
    top_k: int | None = Field(default=None, ge=1)
    """Draw among this many best tokens; None for all."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Decides what is drawn, together with the number of the text and of the token."""


StrategyConfig = Annotated[AnyStrategy, Field(discriminator="name"), BeforeValidator(named)]
"""One entry of `strategies`; a bare name stands for that strategy with its defaults."""

Entry = Annotated[AnyStrategy | AutoConfig, Field(discriminator="name"), BeforeValidator(named)]
"""One entry of a benchmark's `strategies`, which may leave the choice to what is predicted."""


def candidates_of(entry: AnyStrategy | AutoConfig) -> tuple[AnyStrategy, ...]:
    """Return what may come to run for an entry."""
    return entry.among if isinstance(entry, AutoConfig) else (entry,)


class AccuracyConfig(Section):
    """A labelled set that every strategy also answers, on the same devices, once its latency has been measured."""

    data: DataConfig
    model: ModelConfig | None = None
    """A model that was trained for the set; None for the benchmark's."""
    strategies: tuple[StrategyConfig, ...] | None = Field(default=None, min_length=1)
    """The benchmark's strategies in the same order, as they are to be set up for this model; None for as they are."""
    split: Literal["validation", "test"] = "test"
    limit: int | None = Field(default=None, ge=1)
    """Examples to answer at most; None for all."""
    batch_size: int = Field(default=32, ge=1)


def named_or_weights(value: Any, names: Sequence[str]) -> Any:
    """Take one of `names`, or a list of weights as a tuple of numbers; refuse anything else in this project's words."""
    if value in names:
        return value
    weights = list(value) if isinstance(value, (list, tuple)) else []
    if not weights or not all(_is_weight(weight) for weight in weights):
        known = ", ".join(map(repr, names))
        raise faults.rule_error(
            f"{known} or a list of numbers greater than 0, one per device",
            "a device with weight 2 gets twice the work of one with weight 1",
        )
    return tuple(float(weight) for weight in weights)


def _even_or_cpus(value: Any) -> Any:
    return named_or_weights(value, ("even", "cpus"))


def _is_weight(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


class BenchConfig(Section):
    """One benchmark: every strategy serves the same requests in turn."""

    model: ModelConfig
    input: InputConfig = InputConfig()
    strategies: tuple[Entry, ...] = Field(min_length=1)
    requests: int = Field(default=10, ge=1)
    """Measured requests per strategy."""
    warmup: int = Field(default=2, ge=0)
    """Requests per strategy that are served first and not counted."""
    partition: Annotated[Literal["even", "cpus"] | tuple[float, ...], BeforeValidator(_even_or_cpus)] = "even"
    """How work is dealt to the ranks: alike, by the CPU share of each device, or by these weights."""
    generation: GenerationConfig | None = None
    """What `astra generate` is to make of each input; `astra bench` has none."""
    accuracy: AccuracyConfig | None = None
    """What `astra bench` has every strategy answer to say how accurate it is; `astra generate` has none."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Longest wait for any one message, and for every rank to show up."""
    failures: FailuresConfig = FailuresConfig()
    """How soon a lost peer is noticed, and what becomes of the run."""
    predict: bool = False
    """Whether `astra bench` also predicts each strategy's latency, from what ranks measure of devices and links before
    the first request; that sends packets. `auto` and `code_bits: auto` measure in any case."""

    @property
    def measures_first(self) -> bool:
        """Whether ranks measure devices and links before the first request."""
        return self.predict or self.auto is not None or self.chooses_bits

    @property
    def chooses_bits(self) -> bool:
        """Whether ranks are to choose how many bits codes have."""
        return any(isinstance(entry, AstraConfig) and entry.chooses_bits for entry in self.strategies)

    @property
    def candidates(self) -> tuple[AnyStrategy, ...]:
        """All strategies that may come to run: those that are named, and those among which is chosen."""
        return tuple(each for entry in self.strategies for each in candidates_of(entry))

    @property
    def auto(self) -> AutoConfig | None:
        """The entry that leaves the choice open, if there is one."""
        return next((entry for entry in self.strategies if isinstance(entry, AutoConfig)), None)

    def weights(self, world_size: int, cpus: Sequence[float] | None = None) -> tuple[float, ...]:
        """Return the share of each of `world_size` ranks.

        `cpus` are the CPU shares of all ranks, for `partition: cpus`; where they are not known yet, all count alike.

        Raises:
            ConfigError: The list of weights has another length.
        """
        if self.partition == "cpus":
            return (1.0,) * world_size if cpus is None else tuple(cpus)
        if self.partition == "even":
            return (1.0,) * world_size
        if len(self.partition) != world_size:
            raise ConfigError(
                [
                    f"config: partition must be 'even', 'cpus' or a list of {world_size} weights, one per device, "
                    f"got {list(self.partition)!r}; make its length the number of devices"
                ]
            )
        return self.partition
