"""What a scenario of the testbed says of devices and links, as far as a prediction needs it.

    scenario.yaml (and what it extends) ──read_scenario──► Setting: benchmark, CPU shares, links

Reads the same files as `testbed`, which checks them thoroughly; what is of no use here (events, queues, expectations)
is left out. Bursts of loss count with their mean.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from astra import faults
from astra.config import BenchConfig
from astra.config_file import parse_config
from astra.errors import ConfigError
from astra.planning.links import Links, LinkSpeed
from astra.yaml_file import read_yaml

__all__ = ["Setting", "read_scenario"]

_EVERY = "*"
_Percent = Annotated[float, Field(ge=0, le=100)]


@dataclass(frozen=True)
class Setting:
    """What is to be predicted."""

    config: BenchConfig
    cpus: tuple[float | None, ...]
    """Of each device; None for no limit."""
    links: Links


class _Part(BaseModel):
    """A block of the file, of which only some keys matter."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", populate_by_name=True, allow_inf_nan=False)


class _Loss(_Part):
    model: Literal["bernoulli", "gilbert_elliott", "recorded"]
    loss_pct: _Percent = 0.0
    enter_pct: _Percent = 0.0
    leave_pct: _Percent = 100.0
    good_loss_pct: _Percent = 0.0
    bad_loss_pct: _Percent = 100.0

    @property
    def mean_pct(self) -> float:
        """Return the mean loss; that of a recording is not read, and taken for nothing."""
        if self.model != "gilbert_elliott":
            return self.loss_pct
        bad = self.enter_pct / max(self.enter_pct + self.leave_pct, 1e-9)
        return bad * self.bad_loss_pct + (1 - bad) * self.good_loss_pct


class _Impaired(_Part):
    rate_mbps: float | None = Field(default=None, gt=0)
    delay_ms: float = Field(default=0.0, ge=0)
    loss_pct: _Percent = 0.0
    loss: _Loss | None = None

    @model_validator(mode="after")
    def _lets_something_through(self) -> Self:
        if self.loss_pct == 100 or (self.loss is not None and self.loss.mean_pct >= 100):
            raise faults.rule_error("a link that loses less than 100 %", "nothing would ever arrive")
        return self

    def over(self, speed: LinkSpeed) -> LinkSpeed:
        """Return `speed` with what is stated here put over it."""
        stated = self.model_fields_set
        rate_bps, delay_s, loss = speed.rate_bps, speed.delay_s, speed.loss
        if "rate_mbps" in stated:
            rate_bps = float("inf") if self.rate_mbps is None else self.rate_mbps * 1e6
        if "delay_ms" in stated:
            delay_s = self.delay_ms / 1e3
        if "loss" in stated and self.loss is not None:
            loss = self.loss.mean_pct / 100
        elif "loss_pct" in stated:
            loss = self.loss_pct / 100
        return LinkSpeed(rate_bps, delay_s, loss)


class _Override(_Impaired):
    from_: str | None = Field(default=None, alias="from")
    to: str | None = None
    between: tuple[str, ...] | None = Field(default=None, strict=False, min_length=2, max_length=2)

    @model_validator(mode="after")
    def _has_ends(self) -> Self:
        if self.between is None and (self.from_ is None or self.to is None):
            raise faults.rule_error("a mapping with `between`, or with `from` and `to`", "say which links it is for")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """What is to be the name of a device."""
        if self.between is not None:
            return self.between
        return tuple(name for name in (self.from_, self.to) if name is not None and name != _EVERY)

    def pairs(self, count: int) -> Iterator[tuple[int, int]]:
        """Yield source and destination of the links that it is for, among so many devices."""
        if self.between is not None:
            yield from permutations((int(name[1:]) for name in self.between), 2)
            return
        for source in _ranks(self.from_, count):
            yield from ((source, destination) for destination in _ranks(self.to, count) if destination != source)


class _Links(_Part):
    default: _Impaired = _Impaired()
    overrides: tuple[_Override, ...] = Field(default=(), strict=False)
    uplink_mbps: float | None = Field(default=None, gt=0)

    def speeds(self, count: int) -> Links:
        """Return all links of so many devices."""
        uplink_bps = float("inf") if self.uplink_mbps is None else self.uplink_mbps * 1e6
        default, known = self.default.over(LinkSpeed()), dict[tuple[int, int], LinkSpeed]()
        for override in self.overrides:
            for pair in override.pairs(count):
                known[pair] = override.over(known.get(pair, default))
        exceptions = tuple((*pair, speed) for pair, speed in known.items() if speed != default)
        return Links(default, exceptions, uplink_bps)


class _Limits(_Part):
    cpus: float | None = Field(default=None, gt=0)


class _Devices(_Limits):
    count: int = Field(ge=1)
    overrides: dict[str, _Limits] = Field(default_factory=dict)

    def shares(self) -> tuple[float | None, ...]:
        """Return the CPU share of each device."""
        names = (f"d{rank}" for rank in range(self.count))
        own = (self.overrides.get(name, _Limits()) for name in names)
        return tuple(limits.cpus if "cpus" in limits.model_fields_set else self.cpus for limits in own)


class _Workload(_Part):
    config: dict[str, Any]


class _Scenario(_Part):
    devices: _Devices
    links: _Links = _Links()
    workload: _Workload

    @model_validator(mode="after")
    def _names_its_devices(self) -> Self:
        known = {f"d{rank}" for rank in range(self.devices.count)}
        named = [*self.devices.overrides, *(name for override in self.links.overrides for name in override.names)]
        if dangling := sorted({name for name in named if name not in known}):
            rule = f"a scenario whose overrides name its devices, d0 to d{self.devices.count - 1}"
            raise faults.rule_error(f"{rule}, and not {', '.join(dangling)}", "correct them, or raise devices.count")
        return self

    @model_validator(mode="after")
    def _has_strategies(self) -> Self:
        if "strategies" not in self.workload.config:
            raise faults.rule_error("a scenario of `astra bench`", "its workload.config names strategies")
        return self


def _ranks(name: str | None, count: int) -> Sequence[int]:
    """Return the numbers of the devices that a name stands for."""
    return range(count) if name == _EVERY else [int(str(name)[1:])]


def read_scenario(path: Path) -> Setting:
    """Read a scenario and the files that it extends.

    Raises:
        ConfigError: A file cannot be read, or is no scenario of a benchmark; names every fault.
    """
    tree = _merged(path, ())
    try:
        scenario = _Scenario.model_validate_json(json.dumps(tree, default=str))
    except TypeError as error:
        raise ConfigError([f"{path.name}: keys must be text, got others ({error}); correct them"]) from error
    except ValidationError as error:
        raise ConfigError(faults.render(path.name, error, _Scenario)) from error
    config = parse_config(json.dumps(scenario.workload.config), where=f"{path.name}: workload.config")
    return Setting(config, scenario.devices.shares(), scenario.links.speeds(scenario.devices.count))


def _merged(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    """Return a file's tree over that of the file that it extends."""
    if path.resolve() in before:
        raise ConfigError(
            [f"{path}: extends must be a file that does not lead back here, got {path.name!r}; remove it"]
        )
    tree = read_yaml(path)
    base = tree.pop("extends", None)
    if base is None:
        return tree
    return _over(_merged(path.parent / str(base), (*before, path.resolve())), tree)


def _over(base: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key; everything else is replaced."""
    merged = dict(base)
    for key, value in tree.items():
        below = merged.get(key)
        merged[key] = _over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
