"""CPU and memory limits of devices through Linux control groups, version 1 or 2.

    <hierarchy>/testbed-<run id>/<device>/    one group a device, in each hierarchy that is needed

The CPU quota's period is 10 ms, not the kernel's usual 100 ms: a capped device would otherwise stall for most of a
period in the middle of a layer. Makes, fills and removes groups; starts no process.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import RuntimeFailureError, UnsupportedError
from testbed.runtimes import userns

__all__ = ["DeviceGroups", "Hierarchies", "cpu_quota", "find_hierarchies"]

PERIOD_US = 10_000
MIN_QUOTA_US = 1_000
"""The kernel's smallest quota; below 0.1 CPU the period has to grow."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
"""The kernel rounds memory limits down to whole pages."""
REMOVE_ATTEMPTS = 50
REMOVE_PAUSE_S = 0.02

WAY_OUT = (
    "run as root, or under a delegated group (systemd-run --user --scope -p Delegate=yes testbed …), "
    "or pass --uncapped to run without CPU and memory limits, which the record will say"
)


@dataclass(frozen=True)
class Hierarchies:
    """Folders under which groups may be made: both the same in version 2."""

    version: int
    cpu: Path
    memory: Path

    def roots(self) -> tuple[Path, ...]:
        """Return each folder once."""
        return (self.cpu,) if self.cpu == self.memory else (self.cpu, self.memory)


def find_hierarchies(mounts: str | None = None, own_groups: str | None = None) -> Hierarchies:
    """Find where the cpu and memory controllers are.

    `mounts` and `own_groups` default to this process's `/proc/self/mounts` and `/proc/self/cgroup`.
    Raises UnsupportedError if a controller is not mounted.
    """
    mounts = Path("/proc/self/mounts").read_text() if mounts is None else mounts
    own_groups = Path("/proc/self/cgroup").read_text() if own_groups is None else own_groups
    found: dict[str, Path] = {}
    unified: Path | None = None
    for line in mounts.splitlines():
        _, mount_point, kind, options, *_ = line.split()
        if kind == "cgroup":
            for controller in {"cpu", "memory"} & set(options.split(",")):
                found[controller] = Path(mount_point)
        elif kind == "cgroup2":
            unified = Path(mount_point)
    if {"cpu", "memory"} <= found.keys():
        return Hierarchies(1, found["cpu"], found["memory"])
    if unified is not None:
        # Root of a user namespace is still the user outside, who owns no more than what was delegated.
        real_root = os.geteuid() == 0 and not userns.inside()
        root = unified if real_root else _own_group(unified, own_groups)
        available = _read(root / "cgroup.controllers").split()
        if {"cpu", "memory"} <= set(available):
            return Hierarchies(2, root, root)
    raise UnsupportedError(
        f"cgroups: controllers cpu and memory must be usable, got {sorted(found) or 'neither'}; {WAY_OUT}"
    )


def _own_group(unified: Path, own_groups: str) -> Path:
    for line in own_groups.splitlines():
        number, _, path = line.split(":", 2)
        if number == "0":
            return unified / path.lstrip("/")
    return unified


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


class DeviceGroups:
    """The control groups of one run's devices."""

    def __init__(self, run_id: str, hierarchies: Hierarchies):
        self._hierarchies = hierarchies
        self._parents = [root / f"testbed-{run_id}" for root in hierarchies.roots()]

    def exist(self) -> bool:
        """Whether the run has any groups."""
        return any(parent.exists() for parent in self._parents)

    def create(self, device: str) -> None:
        """Make a device's groups. Raises UnsupportedError where this user may not."""
        try:
            for parent in self._parents:
                if self._hierarchies.version == 2:
                    self._enable_controllers(parent.parent)
                parent.mkdir(exist_ok=True)
                if self._hierarchies.version == 2:
                    self._enable_controllers(parent)
                (parent / device).mkdir(exist_ok=True)
        except OSError as error:
            raise UnsupportedError(
                f"cgroups: {error.filename} must be writable, got {error.strerror!r}; {WAY_OUT}"
            ) from error

    def _enable_controllers(self, group: Path) -> None:
        control = group / "cgroup.subtree_control"
        if {"cpu", "memory"} <= set(_read(control).split()):
            return
        try:
            control.write_text("+cpu +memory")
        except OSError:
            # A group that holds processes may not hand controllers down: step aside into a leaf of our own.
            leaf = group / f"testbed-self-{os.getpid()}"
            leaf.mkdir(exist_ok=True)
            (leaf / "cgroup.procs").write_text(str(os.getpid()))
            control.write_text("+cpu +memory")

    def limit(self, device: str, *, cpus: float | None, memory_mb: int | None) -> None:
        """Set both limits (None lifts one) and read them back.

        Raises RuntimeFailureError if the kernel keeps something else.
        """
        quota_us, period_us = cpu_quota(cpus)
        memory = None if memory_mb is None else memory_mb * 10**6 // PAGE_BYTES * PAGE_BYTES
        cpu_group, memory_group = self._parents[0] / device, self._parents[-1] / device
        if self._hierarchies.version == 1:
            wanted = {
                cpu_group / "cpu.cfs_period_us": str(period_us),
                cpu_group / "cpu.cfs_quota_us": str(-1 if quota_us is None else quota_us),
                memory_group / "memory.limit_in_bytes": str(-1 if memory is None else memory),
            }
        else:
            wanted = {
                cpu_group / "cpu.max": f"{'max' if quota_us is None else quota_us} {period_us}",
                memory_group / "memory.max": "max" if memory is None else str(memory),
            }
        for path, value in wanted.items():
            try:
                path.write_text(value)
            except OSError as error:
                raise RuntimeFailureError(
                    f"device {device}: {path} must take {value}, got {error.strerror!r}"
                ) from error
            kept = path.read_text().strip()
            if kept != value and value != "-1":
                raise RuntimeFailureError(f"device {device}: {path} must be {value}, got {kept!r}")

    def files(self, device: str) -> list[Path]:
        """Return the files that a process writes its id to in order to join the device."""
        return [parent / device / "cgroup.procs" for parent in self._parents]

    def out_of_memory(self, device: str) -> bool:
        """Whether the kernel has killed a process of this device for want of memory."""
        group = self._parents[-1] / device
        name = "memory.oom_control" if self._hierarchies.version == 1 else "memory.events"
        counts = dict(line.split() for line in _read(group / name).splitlines())
        return int(counts.get("oom_kill", 0)) > 0

    def remove(self) -> None:
        """Kill what still runs in the run's groups and delete them; idempotent."""
        for _ in range(REMOVE_ATTEMPTS):
            for pid in self._pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for parent in self._parents:
                for group in [*parent.glob("*/"), parent]:
                    with contextlib.suppress(OSError):
                        group.rmdir()
            if not self.exist():
                return
            time.sleep(REMOVE_PAUSE_S)
        left = [str(parent) for parent in self._parents if parent.exists()]
        raise RuntimeFailureError(f"cgroups: {', '.join(left)} must be empty to be removed; processes do not die")

    def _pids(self) -> Iterator[int]:
        for parent in self._parents:
            for procs in parent.glob("*/cgroup.procs"):
                yield from (int(line) for line in _read(procs).split())


def cpu_quota(cpus: float | None) -> tuple[int | None, int]:
    """Return quota (None for no limit) and period in microseconds."""
    if cpus is None:
        return None, PERIOD_US
    period_us = PERIOD_US if cpus * PERIOD_US >= MIN_QUOTA_US else 10 * PERIOD_US
    return round(cpus * period_us), period_us
