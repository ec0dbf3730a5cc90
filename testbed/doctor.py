"""Examine what this machine can emulate, by trying. Prints nothing; `testbed doctor` does.

Each `Finding` is one capability with what was seen, and the way out where it is missing.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import TestbedError
from testbed.runtimes.cgroups import DeviceGroups, find_hierarchies
from testbed.shaper.features import FEATURES, PROGRAMS, missing_features, missing_programs

__all__ = ["Finding", "examine"]

MIN_KERNEL = (4, 18)
"""Of Debian 10 and RHEL 8; nothing older has been tried."""
MIN_MEMORY_MB = 4000
TRIAL_CPUS = 0.5
TRIAL_MEMORY_MB = 100


@dataclass(frozen=True)
class Finding:
    """One capability of this machine."""

    name: str
    ok: bool
    detail: str
    way_out: str = ""
    """What to do where it is missing; "" where nothing has to be done."""


def examine() -> list[Finding]:
    """Try everything that a run may need, in the order in which it is needed."""
    return [
        _kernel(os.uname().release),
        _privileges(),
        *_programs(),
        *_features(),
        _congestion_controls(),
        _groups(),
        _machine(os.cpu_count() or 1, _memory_mb()),
    ]


def _kernel(release: str) -> Finding:
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    wanted = ".".join(map(str, MIN_KERNEL))
    return Finding("kernel", numbers >= MIN_KERNEL, f"Linux {release}", f"use Linux {wanted} or later")


def _privileges() -> Finding:
    if os.geteuid() == 0:
        return Finding("privileges", True, "root")
    tried = _succeeds("unshare", "--user", "--map-root-user", "--net", "true")
    detail = "a user namespace, no root needed" if tried else "neither root nor user namespaces"
    return Finding("privileges", tried, detail, "run as root, or sysctl kernel.unprivileged_userns_clone=1")


def _programs() -> Iterator[Finding]:
    missing = missing_programs()
    for name, package in PROGRAMS.items():
        detail = "not found" if name in missing else f"found (package {package})"
        yield Finding(f"program {name}", name not in missing, detail, missing.get(name, ""))


def _features() -> Iterator[Finding]:
    missing = missing_features()
    for name, feature in FEATURES.items():
        yield Finding(f"kernel {name}", name not in missing, feature.purpose, missing.get(name, ""))
    for name in missing.keys() - FEATURES.keys() - PROGRAMS.keys():
        yield Finding(name, False, "cannot be made", missing[name])


def _congestion_controls() -> Finding:
    """Say what the kernel offers; links pin cubic by route, so the default does not matter."""
    folder = Path("/proc/sys/net/ipv4")
    available = (folder / "tcp_available_congestion_control").read_text().split()
    detail = f"{' '.join(available)}; cubic is used whatever the default"
    return Finding("tcp congestion control", "cubic" in available, detail, "modprobe tcp_cubic")


def _groups() -> Finding:
    """Make, fill and remove a group for a device: the only way to know whether limits can be set."""
    name = "cpu and memory limits"
    try:
        groups = DeviceGroups(f"doctor-{os.getpid()}", hierarchies := find_hierarchies())
        with contextlib.ExitStack() as stack:
            stack.callback(groups.remove)
            groups.create("d0")
            groups.limit("d0", cpus=TRIAL_CPUS, memory_mb=TRIAL_MEMORY_MB)
    except TestbedError as error:
        seen, _, way_out = str(error).partition("; ")
        return Finding(name, False, seen, way_out or "run as root, or pass --uncapped")
    return Finding(name, True, f"control groups version {hierarchies.version}")


def _machine(cores: int, memory_mb: int) -> Finding:
    detail = f"{cores} cores, {memory_mb} MB of memory"
    return Finding("machine", memory_mb >= MIN_MEMORY_MB, detail, "devices share this; give each less memory_mb")


def _memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6


def _succeeds(*command: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True).returncode == 0
    return False
