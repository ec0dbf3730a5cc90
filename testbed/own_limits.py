"""CPU and memory limits as control groups say them (version 1 or 2): of this process's container, or of any group.

Reads files and sets nothing.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from testbed.protocol.from_agents import Limits

__all__ = ["group_limits", "own_limits", "read_group"]

ROOT = Path("/sys/fs/cgroup")
UNLIMITED_BYTES = 1 << 60
"""Version 1 writes "no limit" as a number near 2^63."""
USUAL_PERIOD_US = 100_000


def own_limits(root: Path = ROOT) -> Limits:
    """Return what the container that this process is in may use; a limit that is not there is None."""
    return group_limits({"": root, "cpu": root / "cpu", "memory": root / "memory"})


def group_limits(folders: Mapping[str, Path]) -> Limits:
    """Return a group's limits, whose folders are given by controller; "" is version 2, which has them all."""
    return Limits(cpus=_cpus(folders), memory_bytes=_memory_bytes(folders))


def read_group(folders: Mapping[str, Path], controller: str, name: str) -> str | None:
    """Read a file of a group; None where it cannot be read."""
    with contextlib.suppress(OSError, KeyError):
        return (folders[controller] / name).read_text()
    return None


def _cpus(folders: Mapping[str, Path]) -> float | None:
    if (text := read_group(folders, "", "cpu.max")) is not None:
        quota, period = text.split()
        return None if quota == "max" else int(quota) / int(period)
    quota_us = int(read_group(folders, "cpu", "cpu.cfs_quota_us") or -1)
    period_us = int(read_group(folders, "cpu", "cpu.cfs_period_us") or USUAL_PERIOD_US)
    return None if quota_us < 0 else quota_us / period_us


def _memory_bytes(folders: Mapping[str, Path]) -> int | None:
    text = read_group(folders, "", "memory.max") or read_group(folders, "memory", "memory.limit_in_bytes")
    if text is None or text.strip() == "max" or int(text) >= UNLIMITED_BYTES:
        return None
    return int(text)
