"""A program to run on every device, and what it finds in its environment there. Pure."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from testbed.known_device import KnownDevice
from testbed.runtimes.surroundings import Identity

__all__ = ["Job", "environment_of"]

MASTER_PORT = 29500


@dataclass(frozen=True)
class Job:
    """A program to run on every device, and what it gets as configuration.

    `folder` is where it starts if devices have this machine's files.
    """

    name: str
    command: tuple[str, ...]
    config: Mapping[str, object]
    folder: Path
    timeout_s: float | None = None
    with_events: bool = False
    """Whether the scenario's events happen while it runs."""
    summary: Mapping[str, str] = field(default_factory=dict)
    """Columns of the summary by their place in what it prints; see `PrintedRows`."""


def environment_of(
    name: str, devices: Mapping[str, KnownDevice], *, identity: Identity, meeting_point: str
) -> dict[str, str]:
    """Say what a program finds in its environment on a device, besides what its agent adds.

    `meeting_point` is where the first device's program may listen to the others beside the data network.
    """
    device, first = devices[name], devices[next(iter(devices))]
    return {
        **identity.environment(),
        "RANK": str(device.rank),
        "WORLD_SIZE": str(len(devices)),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": first.address or "",
        "MASTER_PORT": str(MASTER_PORT),
        "OMP_NUM_THREADS": str(math.ceil(device.spec.cpus or os.cpu_count() or 1)),
        "PYTHONUNBUFFERED": "1",
        "TESTBED_DEVICE": name,
        "CONTROL_ENDPOINT": meeting_point,
        "TESTBED_CPUS": "" if device.spec.cpus is None else f"{device.spec.cpus:g}",
        "TESTBED_MEMORY_MB": "" if device.spec.memory_mb is None else str(device.spec.memory_mb),
    }
