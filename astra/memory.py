"""Memory of this process: how much it may have, how much it may still take, and that what it has freed stays at hand.

    TESTBED_MEMORY_MB --> the device's memory, and what this process has of it ──────────┐
    /proc/self/cgroup --> limits of the own group and of all above it (version 1 or 2) ──┤      ┌► allowed_bytes
    /proc/meminfo     --> what the machine has, and has to spare ────────────────────────┴─ min ─┴► spare_bytes

What is allowed is the same in every run on a device, what is spare is not. The variable is for devices that cannot see
the group that holds them, as in a network namespace of `ip netns`. Pages of files that the kernel would give up count
as free, what this process has freed and kept does not. Where nothing can be read (not Linux), memory counts as scarce.
"""

import ctypes
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["allowed_bytes", "keep_freed_memory", "spare_bytes"]

GROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
MB = 1_000_000

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""
_KEPT_BYTES = 1 << 30
_KEPT_BLOCK_BYTES = 32 << 20
"""The most that glibc takes. Activations are smaller; tables of several groups are larger, and go back when freed."""


def keep_freed_memory() -> bool:
    """Have the C library keep freed blocks of up to 32 MiB for the next request; whether it can (glibc).

    By default the kernel gets them back, and gives them again, zeroed, page by page: 2,900 page faults a layer of
    ViT-Base on a rank of four, which is a tenth of its time (docs/results/performance.md). Holds for the whole process.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT_BLOCK_BYTES)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT_BYTES))


def allowed_bytes(proc: Path = PROC, groups: Path = GROUPS, variables: Mapping[str, str] = os.environ) -> int:
    """Return how many bytes this process may have in all, if it had device or machine for itself."""
    return min((room.allowed for room in _rooms(proc, groups, variables)), default=0)


def spare_bytes(proc: Path = PROC, groups: Path = GROUPS, variables: Mapping[str, str] = os.environ) -> int:
    """Return how many bytes this process may still take before it, or another, is in want; never below 0."""
    return max(0, min((room.allowed - room.used for room in _rooms(proc, groups, variables)), default=0))


class _Room(NamedTuple):
    """A limit in bytes, and how much of it is taken."""

    allowed: int
    used: int


def _rooms(proc: Path, groups: Path, variables: Mapping[str, str]) -> list[_Room]:
    """Return all limits that hold for this process."""
    total, free = (_kilobytes(proc / "meminfo", name) for name in ("MemTotal", "MemAvailable"))
    found = [] if total is None or free is None else [_Room(total, total - free)]
    own_bytes, memory_mb = _kilobytes(proc / "self" / "status", "VmRSS"), variables.get("TESTBED_MEMORY_MB", "")
    if own_bytes is not None and memory_mb.isdigit():  # a device is taken to have this one process
        found.append(_Room(int(memory_mb) * MB, own_bytes))
    return found + [room for folder in _folders(proc, groups) if (room := _group_room(folder)) is not None]


def _kilobytes(path: Path, name: str) -> int | None:
    """Read a line such as "VmRSS:   100 kB", in bytes."""
    for line in _read(path).splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _folders(proc: Path, groups: Path) -> Iterator[Path]:
    """Yield the folders of this process's memory group and of all groups above it.

    A container sees its own group as the root, under the path that it has outside: then only the root is there.
    """
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = groups / controllers
        own = root / path.strip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_dir() and folder.is_relative_to(root))


def _group_room(folder: Path) -> _Room | None:
    """Return a group's limit; None where it has none."""
    for limit, usage, pages in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        allowed, used = _read(folder / limit).strip(), _read(folder / usage).strip()
        if allowed.isdigit() and used.isdigit():
            return _Room(int(allowed), int(used) - _counted(folder / "memory.stat", pages))
    return None


def _counted(stat: Path, name: str) -> int:
    for line in _read(stat).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _read(path: Path) -> str:
    """Return a file's text, or nothing where it cannot be read."""
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
