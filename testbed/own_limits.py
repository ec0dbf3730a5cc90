"""Read the CPU and memory limits of the container that this process is in, from its control group (version 1 or 2).

For devices whose limits somebody else has set. Reads files and sets nothing.
"""

from pathlib import Path

from testbed.protocol import Limits

__all__ = ["own_limits"]

ROOT = Path("/sys/fs/cgroup")
UNLIMITED_BYTES = 1 << 60
"""Version 1 writes "no limit" as a number near 2^63."""


def own_limits(root: Path = ROOT) -> Limits:
    """Return what the container may use; a limit that is not there is None."""
    if (root / "cpu.max").exists():
        quota, period = (root / "cpu.max").read_text().split()
        memory = (root / "memory.max").read_text().strip()
        return Limits(
            cpus=None if quota == "max" else int(quota) / int(period),
            memory_bytes=None if memory == "max" else int(memory),
        )
    quota_us = _number(root / "cpu" / "cpu.cfs_quota_us", -1)
    memory_bytes = _number(root / "memory" / "memory.limit_in_bytes", UNLIMITED_BYTES)
    return Limits(
        cpus=None if quota_us < 0 else quota_us / _number(root / "cpu" / "cpu.cfs_period_us", 100_000),
        memory_bytes=None if memory_bytes >= UNLIMITED_BYTES else memory_bytes,
    )


def _number(path: Path, absent: int) -> int:
    return int(path.read_text()) if path.exists() else absent
