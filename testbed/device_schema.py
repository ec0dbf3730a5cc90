"""The block `devices` of a scenario: how many there are, what they are called, and what each may use.

{count: 4, cpus: 0.4, overrides: {d3: {cpus: 0.2}}} --> Devices --spec("d3")--> DeviceSpec
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from testbed.block import OMITTABLE, Block, Rule
from testbed.fields import DeviceName

__all__ = ["MAX_DEVICES", "DeviceSpec", "Devices", "device_names"]

MAX_DEVICES = 64

Cpus = Annotated[
    float,
    Field(ge=0.01),
    Rule("a number of at least 0.01 or null", "it counts CPU cores; null sets no limit", "number"),
]
MemoryMb = Annotated[
    int,
    Field(ge=64),
    Rule("a whole number of at least 64 or null", "it counts MB (10^6 bytes); null sets no limit", "integer"),
]
Accelerator = Annotated[Literal["cpu", "cuda"], Rule("cpu or cuda", "name what the program computes on")]


def device_names(count: int) -> tuple[str, ...]:
    """Name `count` devices: d0, d1, ..."""
    return tuple(f"d{rank}" for rank in range(count))


@dataclass(frozen=True)
class DeviceSpec:
    """Limits of one device."""

    cpus: float | None
    """CPU cores that it may use on average, or None for no limit."""
    memory_mb: int | None
    """Memory that it may use in MB (10^6 bytes), or None for no limit."""
    accelerator: Literal["cpu", "cuda"]


class DeviceOverride(Block):
    """Limits of one device that differ from the others'."""

    cpus: Cpus | None = None
    """CPU cores, as a number of at least 0.01 (the smallest quota the kernel takes); null sets no limit."""
    memory_mb: MemoryMb | None = None
    """Memory in MB (10^6 bytes), at least 64; null sets no limit."""
    accelerator: Annotated[Accelerator | None, OMITTABLE] = None
    """What the program computes on: cpu or cuda."""


class Devices(Block):
    """The emulated machines, called d0, d1, and so on."""

    count: Annotated[
        int,
        Field(ge=1, le=MAX_DEVICES),
        Rule(f"a whole number from 1 to {MAX_DEVICES}", "it counts devices", "integer"),
    ]
    """Number of devices, 1 to 64."""
    cpus: Cpus | None = None
    """CPU cores of each, at least 0.01 (0.4 is 40 % of one core); null sets no limit."""
    memory_mb: MemoryMb | None = None
    """Memory of each in MB (10^6 bytes), at least 64; null sets no limit."""
    accelerator: Accelerator = "cpu"
    """What the program computes on: cpu or cuda."""
    overrides: dict[DeviceName, DeviceOverride] = Field(
        default_factory=dict, json_schema_extra={"additionalProperties": False}
    )
    """Devices that differ, by name."""

    def spec(self, name: str) -> DeviceSpec:
        """Return the limits of the device `name`; raise KeyError if there is no such device."""
        if name not in device_names(self.count):
            raise KeyError(name)
        own = self.overrides.get(name, DeviceOverride())
        stated = {key: getattr(own, key) for key in own.model_fields_set}
        everyones = {"cpus": self.cpus, "memory_mb": self.memory_mb, "accelerator": self.accelerator}
        return DeviceSpec(**(everyones | stated))
