"""How fast a device computes: CPU time for each kind of work, and what its share of a CPU makes of that. Pure.

    Work ──Speed──► CPU seconds ──Device.wall──► seconds         a file that `astra probe` wrote ◄──► Speed

CPU time, and not time on the clock, since a device under a quota stands still most of the time: its work takes as much
CPU time as anywhere, and its quota says how long that takes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from astra import faults
from astra.errors import ConfigError
from astra.planning.work import KINDS, Kind, Work
from astra.section import Section

__all__ = ["PERIOD_S", "REFERENCE", "Device", "Speed"]

PERIOD_S = 0.01
"""Of a CPU quota: `testbed` gives each device its share anew every 10 ms."""


class Speed(Section):
    """Seconds of CPU time by kind of work, of one core."""

    format: Literal[1] = 1
    seconds_per: dict[Kind, float] = Field(description="CPU seconds for one of each kind")
    cpus: float | None = Field(default=None, gt=0)
    """Cores, or the share of one, of the device on which it was measured; None where nobody said."""
    measured_on: str = ""
    """Which processor and model, for a reader."""

    @model_validator(mode="after")
    def _names_all(self) -> Self:
        missing = [kind for kind in KINDS if kind not in self.seconds_per]
        if missing or self.seconds_per["dense"] == 0 or any(value < 0 for value in self.seconds_per.values()):
            rule = f"a file with times for all of {', '.join(KINDS)}, none below 0, and dense above 0"
            raise faults.rule_error(rule, "`astra probe --out` writes such a file")
        return self

    @classmethod
    def read(cls, path: Path) -> "Speed":
        """Read what `astra probe --out` wrote. Raises ConfigError with every fault."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError([f"{path}: the file must be readable text, got {error}; check the path"]) from error
        except ValidationError as error:
            raise ConfigError(faults.render(str(path), error, cls)) from error

    def write(self, path: Path) -> None:
        """Write the file that `read` reads. Raises OSError."""
        path.write_text(json.dumps(self.model_dump(), indent=2) + "\n", encoding="utf-8")

    @property
    def gflops(self) -> float:
        """Thousand million operations of layers a second, of one core."""
        return 1e-9 / self.seconds_per["dense"]

    def scaled(self, gflops: float) -> "Speed":
        """Return the speed of a core that is as many times as fast in everything."""
        factor = self.gflops / gflops
        slower = {kind: factor * seconds for kind, seconds in self.seconds_per.items()}
        return Speed(seconds_per=slower, measured_on=f"scaled to {gflops:g} GFLOP/s")

    def without(self, kinds: frozenset[str]) -> "Speed":
        """Return a speed at which these kinds of work cost nothing."""
        kept = {kind: 0.0 if kind in kinds else seconds for kind, seconds in self.seconds_per.items()}
        return self.model_copy(update={"seconds_per": kept})

    def seconds(self, work: Work) -> float:
        """Return the CPU time that work takes."""
        prices: Mapping[Kind, float] = self.seconds_per
        return sum(count * prices[kind] for kind, count in work.counts.items())


@dataclass(frozen=True)
class Device:
    """One device: its speed, and how much of it a rank gets."""

    speed: Speed
    cpus: float | None = None
    """Cores that it may use, or a share of one; None for one core without a limit."""

    @property
    def share(self) -> float:
        """CPU seconds a second in the long run: work is spread over as many threads as there are cores."""
        return 1.0 if self.cpus is None else self.cpus

    @property
    def peak(self) -> float:
        """CPU seconds a second while there is quota left."""
        return max(1.0, float(-(-self.share // 1)))

    @property
    def savings(self) -> float:
        """CPU seconds ahead of its share that a device can be after a pause.

        Source: a quota q · P comes at the start of each period P and lasts for q · P at full speed, so that a burst
        ends (1 - q) · P earlier than at an even rate q.
        """
        share = self.share / self.peak
        return self.peak * share * (1 - share) * PERIOD_S


REFERENCE = Speed(
    seconds_per={
        "dense": 1.37e-11,
        "spilled": 1.8e-12,
        "weights": 8e-10,
        "attention": 1.55e-11,
        "keys": 6e-10,
        "codes": 1.5e-11,
        "scores": 2.5e-10,
        "gathered": 3e-10,
        "calls": 4e-6,
        "encode fp32": 4e-10,
        "encode fp16": 2.5e-9,
        "encode int8": 1.2e-9,
        "encode int4": 2.6e-9,
        "decode fp32": 1.2e-10,
        "decode fp16": 2e-9,
        "decode int8": 4.5e-10,
        "decode int4": 8e-10,
        "messages": 2e-4,
        "bytes": 1.6e-8,
    },
    measured_on="one core of an AMD EPYC with AVX-512, ViT-Base, torch 2.13",
)
"""What `--gflops` scales. 2026-11-21, other work on the machine; messages and bytes on links of 10 Mbps."""
