"""How much memory this process may still take: what its control groups and its machine leave it.

    /proc/self/cgroup --> limits of the own group and of all above it (version 1 or 2) ──┐
    /proc/meminfo     --> what the machine has to spare ─────────────────────────────────┴─ min ──► spare_bytes

Pages of files that the kernel would give up count as free in both. Reads files and sets nothing; where nothing can be
read (not Linux), memory counts as scarce.
"""

from collections.abc import Iterator
from pathlib import Path

__all__ = ["spare_bytes"]

GROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")


def spare_bytes(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Return how many bytes this process may still take before it, or another, is in want; never below 0."""
    found = [_machine_bytes(proc / "meminfo"), *(_group_bytes(folder) for folder in _folders(proc, groups))]
    return max(0, min((bytes_ for bytes_ in found if bytes_ is not None), default=0))


def _machine_bytes(meminfo: Path) -> int | None:
    """Return the kernel's own estimate of what can be taken without swapping."""
    for line in _read(meminfo).splitlines():
        if line.startswith("MemAvailable:"):
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


def _group_bytes(folder: Path) -> int | None:
    """Return what a group's limit leaves; None where it has no limit."""
    for limit, usage, pages in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        allowed, used = _read(folder / limit).strip(), _read(folder / usage).strip()
        if allowed.isdigit() and used.isdigit():
            return int(allowed) - int(used) + _counted(folder / "memory.stat", pages)
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
