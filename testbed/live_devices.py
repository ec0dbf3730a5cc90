"""What a device uses at this moment, read from outside: its control groups, or else the processes below its agent.

    agent's process id --> /proc/<pid>/cgroup --> group of the device alone: CPU clock, memory, both limits
                       └─> the times of its processes, where there is no such group or it has no clock

Reads files of this machine and nothing else: no agent and no program notices. What cannot be read is None.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.own_limits import group_limits, read_group

__all__ = ["DeviceMeter", "Use", "find_folders"]

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CPU_TICKS = slice(11, 15)
"""Fields of /proc/<pid>/stat after the name: user and system time, its own and that of children that have ended."""
_RESIDENT = 21


@dataclass(frozen=True)
class Use:
    """CPU in cores over the time since the last look, memory in bytes, and what both are limited to."""

    cpus: float | None = None
    cpus_limit: float | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None


class DeviceMeter:
    """Looks again and again at the device whose agent has this process id. `group` is how its groups' paths end."""

    def __init__(self, pid: int, group: str):
        self._pid = pid
        self._folders = _own_folders(pid, group)
        self._before: tuple[float, float] | None = None

    def look(self) -> Use:
        """Read what is used now; the first look knows no CPU share yet."""
        spent_s, memory = self._spent_s(), self._memory()
        if spent_s is None or memory is None:
            processes = list(self._processes())
            ticks = sum(int(count) for fields in processes for count in fields[_CPU_TICKS])
            spent_s = ticks * TICK_S if spent_s is None and processes else spent_s
            if memory is None and processes:
                memory = sum(int(fields[_RESIDENT]) for fields in processes) * PAGE_BYTES
        now = time.monotonic()
        before, self._before = self._before, None if spent_s is None else (now, spent_s)
        cpus = None
        if before is not None and spent_s is not None and now > before[0]:
            cpus = max(0.0, (spent_s - before[1]) / (now - before[0]))
        limits = group_limits(self._folders)
        return Use(cpus, limits.cpus, memory, limits.memory_bytes)

    def _processes(self) -> Iterator[list[str]]:
        """Yield the fields of /proc/<pid>/stat of every process of the device."""
        listed = self._read("", "cgroup.procs") or self._read("cpu", "cgroup.procs")
        if listed is None:
            yield from _stat_below(self._pid)
            return
        for pid in listed.split():
            with contextlib.suppress(OSError):
                yield _stat(int(pid))

    def _spent_s(self) -> float | None:
        if (text := self._read("", "cpu.stat")) is not None:
            return float(text.split()[1]) / 1e6  # usage_usec comes first
        if (text := self._read("cpuacct", "cpuacct.usage")) is not None:
            return int(text) / 1e9
        return None

    def _memory(self) -> int | None:
        """Return what is in use, less file pages that the kernel could take back at once."""
        used = self._read("", "memory.current") or self._read("memory", "memory.usage_in_bytes")
        if used is None:
            return None
        text = self._read("", "memory.stat") or self._read("memory", "memory.stat") or ""
        spare = dict(line.split(" ", 1) for line in text.splitlines())
        return max(0, int(used) - int(spare.get("total_inactive_file", spare.get("inactive_file", 0))))

    def _read(self, controller: str, name: str) -> str | None:
        return read_group(self._folders, controller, name)


def _own_folders(pid: int, group: str) -> dict[str, Path]:
    with contextlib.suppress(OSError):
        return find_folders(Path(f"/proc/{pid}/cgroup").read_text(), Path("/proc/self/mounts").read_text(), group)
    return {}


def find_folders(groups: str, mounts: str, group: str) -> dict[str, Path]:
    """Return the folders of the groups whose path holds `group`, by controller; "" is version 2, which has them all.

    `groups` and `mounts` are what /proc says in `cgroup` and `mounts`.
    """
    mounted: dict[str, str] = {}
    for line in mounts.splitlines():
        _, mount_point, kind, options, *_ = line.split()
        controllers = [""] if kind == "cgroup2" else options.split(",") if kind == "cgroup" else []
        mounted |= dict.fromkeys(controllers, mount_point)
    found = {}
    for line in groups.splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            if group in path and name in mounted and (folder := Path(mounted[name] + path)).is_dir():
                found[name] = folder
    return found


def _stat_below(pid: int) -> Iterator[list[str]]:
    """Yield the fields of /proc/<pid>/stat of a process and all below it."""
    with contextlib.suppress(OSError):
        yield _stat(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in _read_numbers(children):
                yield from _stat_below(child)


def _stat(pid: int) -> list[str]:
    """Return what follows the name in /proc/<pid>/stat."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _read_numbers(path: Path) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in path.read_text().split()]
    return []
