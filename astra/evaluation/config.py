"""What `astra evaluate` is asked to do: a YAML or JSON file as a frozen and strict pydantic model.

    model: {checkpoint: checkpoints/cifar100/original}
    data: {name: cifar100, folder: …}
    strategies: [single, {name: astra, checkpoint: "checkpoints/cifar100/g1-{seed}"}]
    devices: [2, 4, 8]
    seeds: [0, 1, 2]        # `{seed}` in a checkpoint, and the draw of `partition: random`

Checks fields against one another and against checkpoints' own `config.json`; reads no data, no weights and no torch.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from astra import faults
from astra.config import ModelConfig, StrategyConfig, named_or_weights
from astra.data_config import DataConfig
from astra.errors import ConfigError
from astra.model_faults import model_faults, planning_faults
from astra.section import Section
from astra.strategy_config import AnyStrategy, uses_datagrams
from astra.strategy_faults import bits_faults, strategy_faults
from astra.yaml_file import read_yaml

__all__ = ["SEED", "EvaluationConfig", "datagram_faults", "load_evaluation", "parse_evaluation"]

SEED = "{seed}"
"""Stands in a checkpoint's name for each of `seeds`."""


def _named_or_weights(value: Any) -> Any:
    return named_or_weights(value, ("even", "random"))


class EvaluationConfig(Section):
    """Strategies that answer a labelled set, on some numbers of devices."""

    model: ModelConfig
    data: DataConfig
    strategies: tuple[StrategyConfig, ...] = Field(min_length=1)
    split: Literal["train", "validation", "test"] = "test"
    devices: tuple[Annotated[int, Field(ge=1, le=255)], ...] = Field(default=(4,), min_length=1)
    """Numbers of devices that strategies are spread over, in one process. On a testbed its devices are used."""
    partition: Annotated[Literal["even", "random"] | tuple[float, ...], BeforeValidator(_named_or_weights)] = "even"
    """How work is dealt: alike, by weights drawn uniformly from all that add up to 1 for each seed, or by these."""
    seeds: tuple[Annotated[int, Field(ge=0, le=2**32 - 1)], ...] = Field(default=(0,), min_length=1)
    batch_size: int = Field(default=32, ge=1)
    limit: int | None = Field(default=None, ge=1)
    """Examples to answer at most; None for all."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Longest wait for any one message: a batch on the slowest device has to fit."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        weights = self.partition if isinstance(self.partition, tuple) else ()
        if weights and set(self.devices) != {len(weights)}:
            rule = f"an evaluation whose devices are [{len(weights)}] where partition has so many weights"
            raise faults.rule_error(rule, "give one weight per device")
        if len(set(self.devices)) != len(self.devices) or len(set(self.seeds)) != len(self.seeds):
            raise faults.rule_error("an evaluation whose devices and seeds are each there once", "remove the repeated")
        return self

    def for_seed(self, seed: int) -> "EvaluationConfig":
        """Return the config with `{seed}` filled in."""
        strategies = tuple(_filled(strategy, seed) for strategy in self.strategies)
        return self.model_copy(update={"model": _filled(self.model, seed), "strategies": strategies})

    def varies(self, strategy: AnyStrategy) -> bool:
        """Say whether a strategy's answers depend on the seed."""
        names = (self.model.checkpoint or "") + (strategy.checkpoint or "")
        return SEED in names or (self.partition == "random" and strategy.name != "single")


_CONFIG = TypeAdapter(EvaluationConfig)
_Named = TypeVar("_Named", ModelConfig, AnyStrategy)


def load_evaluation(path: Path, overrides: Mapping[str, Any] | None = None) -> EvaluationConfig:
    """Read and check a file; `overrides` replace its keys, where `data.folder` lies within `data`.

    Raises:
        ConfigError: With every fault found.
    """
    tree = read_yaml(path)
    for key, value in (overrides or {}).items():
        section, _, field = key.rpartition(".")
        target = tree.get(section) if section else tree
        if isinstance(target, dict):
            target[field] = value
    return parse_evaluation(tree, where=path.name)


def parse_evaluation(tree: dict[str, Any], *, where: str) -> EvaluationConfig:
    """Check a file's tree; `where` begins every message. Raises ConfigError with every fault found."""
    try:
        config = _CONFIG.validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise ConfigError(faults.render(where, error, EvaluationConfig)) from error
    found = dict[str, None]()  # in order, each once: most are the same for all seeds
    for seed in config.seeds:
        seeded = config.for_seed(seed)
        unusable = model_faults(where, seeded.model) or planning_faults(where, seeded.model)
        found |= dict.fromkeys([*unusable, *strategy_faults(where, seeded.strategies, seeded.model)])
    found |= dict.fromkeys(bits_faults(where, config.strategies, "to evaluate"))
    if found:
        raise ConfigError(list(found))
    return config


def datagram_faults(config: EvaluationConfig) -> list[str]:
    """Refuse what only has a meaning between devices."""
    return [
        f"config: strategies[{index}].transport must be 'reliable' in one process, got 'datagram'; leave it out, or "
        "evaluate on a testbed"
        for index, strategy in enumerate(config.strategies)
        if uses_datagrams(strategy)
    ]


def _filled(section: _Named, seed: int) -> _Named:
    if section.checkpoint is None:
        return section
    return section.model_copy(update={"checkpoint": section.checkpoint.replace(SEED, str(seed))})
