"""How each strategy is set up: one frozen and strict pydantic model each, told apart by `name`. Pure, free of torch."""

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import BeforeValidator, Field, model_validator

from astra import faults
from astra.packaged import CheckpointName
from astra.section import Section, named
from astra.transport_config import DatagramConfig, ReliableConfig, TransportConfig

__all__ = [
    "DEFAULT_NUM_CODEWORDS",
    "AnyStrategy",
    "AstraConfig",
    "AutoConfig",
    "BlockConfig",
    "Chosen",
    "Coding",
    "GalaxyConfig",
    "Listed",
    "NumCodewords",
    "PipelineConfig",
    "PrismConfig",
    "QuantisedSection",
    "SequenceConfig",
    "SingleConfig",
    "Site",
    "StrategySection",
    "TableType",
    "TensorConfig",
    "WireName",
    "bits_text",
    "copies_of",
    "uses_datagrams",
]

WireName = Literal["fp32", "fp16", "int8", "int4"]
Site = Literal["input", "kv"]
TableType = Literal["fp16", "fp32"]
Coding = Literal["fixed", "entropy"]
DEFAULT_NUM_CODEWORDS = 1024
DEFAULT_NUM_BLOCKS = 4
MAX_NUM_CODEWORDS = 65536
MAX_CODED_BITS = 12
"""Beyond that, probabilities in 65,536ths say too little."""


class StrategySection(Section):
    """What every strategy may be given besides its own settings."""

    checkpoint: CheckpointName | None = None
    """Folder of weights that were fine-tuned for this strategy, of the model's sizes; `astra` also takes trained
    codebooks from there. None for the model's own weights."""
    label: str | None = Field(default=None, min_length=1)
    """What tables call these weights; None for the name of their folder."""

    @property
    def own_settings(self) -> str:
        """What tells two entries with the same weights apart."""
        return ""

    @property
    def settings(self) -> str:
        """What tells two entries of this strategy apart in a table."""
        weights = f"weights={Path(self.checkpoint).name}" if self.checkpoint else ""
        return f"{self.own_settings} {self.label or weights}".strip()


class WiredSection(StrategySection):
    """A strategy that moves activations, and nothing else tells its entries apart."""

    wire: WireName = "fp32"

    @property
    def own_settings(self) -> str:
        """What tells two entries with the same weights apart."""
        return f"wire={self.wire}"


class SingleConfig(StrategySection):
    """The whole model on rank 0."""

    name: Literal["single"] = "single"


class TensorConfig(WiredSection):
    """Each rank holds some heads and hidden units of every layer; two ring all-reduces a layer."""

    name: Literal["tensor"] = "tensor"


class SequenceConfig(WiredSection):
    """Each rank keeps its slice of tokens and all-gathers activations in every layer."""

    name: Literal["sequence"] = "sequence"


class GalaxyConfig(WiredSection):
    """Heads and hidden units split as in `tensor`, norms over tokens; gathers and scatters overlap with compute."""

    name: Literal["galaxy"] = "galaxy"


class PipelineConfig(WiredSection):
    """Each rank runs consecutive layers and hands its result to the next."""

    name: Literal["pipeline"] = "pipeline"
    in_flight: int = Field(default=4, ge=1)
    """Requests that are under way at once while throughput is measured; latency is measured with one."""


def _unless_fp32(wire: WireName) -> str:
    """Name the wire where it is not the usual one."""
    return "" if wire == "fp32" else f" wire={wire}"


class BlockConfig(StrategySection):
    """Layers cut into sub-blocks that run without exchange, but for a few whole layers in between."""

    name: Literal["block"] = "block"
    num_blocks: int = Field(default=DEFAULT_NUM_BLOCKS, ge=1)
    """Sub-blocks of every decoupled layer; they are dealt to the ranks."""
    num_coupled: int = Field(default=1, ge=1)
    """Layers that stay whole."""
    exchange: Literal["all_gather", "sequence"] = "all_gather"
    """At a whole layer, every rank runs all of it, or the part that its tokens need."""
    wire: WireName = "fp32"

    @property
    def own_settings(self) -> str:
        """What tells two entries with the same weights apart."""
        exchange = "AG" if self.exchange == "all_gather" else "SP"
        blocks = "" if self.num_blocks == DEFAULT_NUM_BLOCKS else f" blocks={self.num_blocks}"
        return f"{exchange} coupled={self.num_coupled}{blocks}{_unless_fp32(self.wire)}"


class PrismConfig(StrategySection):
    """Each rank keeps its slice of tokens and sends the means of segments of it."""

    name: Literal["prism"] = "prism"
    num_segments: int | None = Field(default=None, ge=1)
    """Means that each rank sends in every layer."""
    compression_ratio: float | None = Field(default=None, ge=1)
    """Tokens of a slice for each mean; give this or `num_segments`."""
    wire: WireName = "fp32"
    transport: TransportConfig = ReliableConfig()
    """How means travel; the answer is always sent reliably."""

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        if (self.num_segments is None) == (self.compression_ratio is None):
            raise faults.rule_error(
                "given either num_segments or compression_ratio", "the first counts means per device and layer"
            )
        return self

    @property
    def own_settings(self) -> str:
        """What tells two entries with the same weights apart."""
        size = f"Ls={self.num_segments}" if self.num_segments is not None else f"CR={self.compression_ratio:g}"
        return f"{size}{_unless_fp32(self.wire)}{self.transport.settings}"


def _power_of_two(value: Any) -> Any:
    """Refuse whole numbers that are no power of two; other types are left to pydantic's own rules."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and not (2 <= value <= MAX_NUM_CODEWORDS and value & (value - 1) == 0):
        raise faults.rule_error(
            f"a power of two from 2 to {MAX_NUM_CODEWORDS}", f"the paper uses {DEFAULT_NUM_CODEWORDS}"
        )
    return value


NumCodewords = Annotated[int, BeforeValidator(_power_of_two)]
"""Codewords of one group."""


class QuantisedSection(Section):
    """What fixes the shape of a layer's codebooks."""

    num_groups: int = Field(default=1, ge=1)
    """Sub-vectors per token, each with a codebook of its own; divides the width of what is quantised."""
    num_codewords: NumCodewords = DEFAULT_NUM_CODEWORDS
    site: Site = "input"
    """What is quantised: the attention input, or keys (before positions) and values side by side."""

    def quantised_width(self, width: int, kv_width: int) -> int:
        """Return how many numbers of a token are quantised, from the model's width and that of its keys."""
        return width if self.site == "input" else 2 * kv_width


def _bits_of_codes(value: Any) -> Any:
    """Take a number of bits, `auto`, or a list with a number for each layer; refuse anything else."""
    counts = list(value) if isinstance(value, (list, tuple)) else [value]
    if value in (None, "auto") or (counts and all(_is_bit_count(count) for count in counts)):
        return tuple(counts) if isinstance(value, list) else value
    raise faults.rule_error(
        "a whole number from 1, a list of them, or 'auto'",
        "a list has a number for each layer; leave it out for all bits",
    )


def _is_bit_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class AstraConfig(QuantisedSection, StrategySection):
    """Each rank keeps its slice of tokens and sends vector-quantised codes of the attention input."""

    name: Literal["astra"] = "astra"
    transport: TransportConfig = ReliableConfig()
    """How codes and class copies travel; a causal model's answer is always sent reliably."""
    tables: TableType = "fp16"
    """What tables of keys and values for G > 1 hold. fp16 takes half the time and memory; a key is then off by at most
    0.2 % of what keys differ by, a hundredth of what quantisation does."""
    coding: Coding = "fixed"
    """Every code in log2 K bits; or in as many as its probability says, given its position or the token's code of the
    layer before."""
    code_bits: Annotated[int | tuple[int, ...] | Literal["auto"] | None, BeforeValidator(_bits_of_codes)] = None
    """Bits that are sent of each code, in all layers or layer by layer: fewer stand for a coarser codebook inside the
    trained one. None for all; `auto` for as many as hide behind computing, by the links that `astra bench` measures."""

    @property
    def bits(self) -> int:
        """How many bits a code has that is sent without entropy coding; the most in any layer, where they differ."""
        if isinstance(self.code_bits, tuple):
            return max(self.code_bits)
        return self.code_bits if isinstance(self.code_bits, int) else self.num_codewords.bit_length() - 1

    @property
    def chooses_bits(self) -> bool:
        """Whether bits are still to be chosen; until then a code counts with all that it has."""
        return self.code_bits == "auto"

    def bits_by_layer(self, num_layers: int) -> tuple[int, ...]:
        """Return how many bits a code of each layer has."""
        return self.code_bits if isinstance(self.code_bits, tuple) else (self.bits,) * num_layers

    @model_validator(mode="after")
    def _has_so_many_bits(self) -> Self:
        if self.bits >= self.num_codewords.bit_length():
            rule = f"a strategy whose code_bits are at most {self.num_codewords.bit_length() - 1}"
            raise faults.rule_error(rule, f"num_codewords is {self.num_codewords}")
        return self

    @model_validator(mode="after")
    def _can_be_coded(self) -> Self:
        if self.coding == "fixed":
            return self
        if not isinstance(self.code_bits, int | None):
            rule = "a strategy whose code_bits are one number where coding is entropy"
            raise faults.rule_error(rule, "tables are counted for it before; or set coding to fixed")
        if self.bits > MAX_CODED_BITS:
            rule = f"a strategy with codes of at most {MAX_CODED_BITS} bits where coding is entropy"
            raise faults.rule_error(rule, "lower num_codewords or code_bits")
        if isinstance(self.transport, DatagramConfig) and self.transport.parity:
            raise faults.rule_error(
                "without parity where coding is entropy: datagrams are then of different lengths", "use copies: 2"
            )
        return self

    @property
    def own_settings(self) -> str:
        """What tells two entries with the same weights apart."""
        coding = "" if self.code_bits is None else f" bits={bits_text(self.code_bits)}"
        coding += "" if self.coding == "fixed" else f" {self.coding}"
        codewords = "" if self.num_codewords == DEFAULT_NUM_CODEWORDS else f" K={self.num_codewords}"
        site = "" if self.site == "input" else f" site={self.site}"
        tables = "" if self.tables == "fp16" else f" tables={self.tables}"
        return f"G={self.num_groups}{codewords}{site}{coding}{tables}{self.transport.settings}"


def bits_text(code_bits: int | tuple[int, ...] | str) -> str:
    """Write bits in short: those of several layers as `8x2,6x10`."""
    if not isinstance(code_bits, tuple):
        return str(code_bits)
    return ",".join(f"{bits}x{len(list(layers))}" for bits, layers in groupby(code_bits))


AnyStrategy = (
    SingleConfig
    | TensorConfig
    | SequenceConfig
    | PipelineConfig
    | GalaxyConfig
    | BlockConfig
    | PrismConfig
    | AstraConfig
)
"""One of them, in the order in which they are listed to users."""


class AutoConfig(Section):
    """Whichever of some strategies is predicted to answer first on these devices and links."""

    name: Literal["auto"] = "auto"
    among: tuple[Annotated[AnyStrategy, Field(discriminator="name"), BeforeValidator(named)], ...] = Field(
        min_length=1, strict=False
    )
    """What to choose from; `single` may be one of them."""

    @model_validator(mode="after")
    def _leaves_one_choice(self) -> Self:
        if any(isinstance(each, AstraConfig) and each.chooses_bits for each in self.among):
            raise faults.rule_error("a choice among strategies whose code_bits are stated", "list several of them")
        return self

    @property
    def settings(self) -> str:
        """Nothing: what tells it apart is what was chosen, which `Chosen` names."""
        return ""


class Listed(Protocol):
    """What a table needs to know of a strategy."""

    @property
    def name(self) -> str:
        """Which one it is."""

    @property
    def settings(self) -> str:
        """What tells two of the same name apart."""


@dataclass(frozen=True)
class Chosen:
    """What `auto` has chosen, as tables show it."""

    strategy: AnyStrategy
    name: str = "auto"

    @property
    def settings(self) -> str:
        """Name the strategy."""
        return f"-> {self.strategy.name} {self.strategy.settings}".strip()


def uses_datagrams(strategy: AnyStrategy) -> bool:
    """Say whether a strategy needs a port for datagrams."""
    return copies_of(strategy) > 0


def copies_of(strategy: AnyStrategy) -> int:
    """Return how often a strategy sends each datagram; 0 if it sends none."""
    if isinstance(strategy, PrismConfig | AstraConfig) and isinstance(strategy.transport, DatagramConfig):
        return strategy.transport.copies
    return 0
