"""Examine what this machine can emulate, by trying. Prints nothing; `testbed doctor` does.

Each `Finding` is one capability with what was seen, and the way out where it is missing.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import TestbedError, UnsupportedError
from testbed.runtimes.cgroups import DeviceGroups, find_hierarchies
from testbed.runtimes.container import image_name
from testbed.runtimes.engine import inspect_engine
from testbed.shaper.features import FEATURES, PROGRAMS, STAND_INS, missing_features, missing_programs

__all__ = ["Finding", "examine", "shortcomings"]

MIN_KERNEL = (4, 18)
"""Of Debian 10 and RHEL 8; nothing older has been tried."""
MIN_MEMORY_MB = 4000
MIN_ENGINE = 20
MIN_COMPOSE = 2
DELAY_FINDINGS = frozenset(f"kernel {name}" for name in STAND_INS)
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
        *_containers(Path("/dev/nvidiactl").exists()),
    ]


def shortcomings(need: str) -> list[Finding]:
    """Try what `need` takes, and return what is missing: netns, docker, `limits` of CPU and memory, or `delays`."""
    if need == "delays":
        found = [each for each in _features() if each.name in DELAY_FINDINGS]
    elif need == "limits":
        found = [_groups()]
    elif need == "docker":
        found = [each for each in _containers(has_gpu=False) if each.name != "docker compose"]
    else:
        found = [_privileges(), *_programs(), *(each for each in _features() if each.name not in DELAY_FINDINGS)]
    return [finding for finding in found if not finding.ok]


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
        instead = STAND_INS.get(name)
        if name in missing and instead is not None and instead not in missing:
            yield Finding(f"kernel {name}", True, f"not there, nor needed: {instead} {FEATURES[instead].purpose}")
        else:
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


def _containers(has_gpu: bool) -> Iterator[Finding]:
    """Examine what only `--runtime docker` and docker compose need; without an engine, that is all there is to say."""
    try:
        engine = inspect_engine()
    except UnsupportedError as error:
        seen, _, way_out = str(error).partition("; ")
        yield Finding("docker engine", False, seen, way_out)
        return
    detail = f"version {engine.version}, control groups version {engine.cgroup_version}"
    yield Finding(
        "docker engine", _major(engine.version) >= MIN_ENGINE, detail, f"use Docker Engine {MIN_ENGINE} or later"
    )
    yield _compose(_output("docker", "compose", "version", "--short"))
    name = image_name("cpu")
    built = name in engine.images
    yield Finding("device image", built, name if built else f"the engine has no {name}", "images/build makes it")
    if has_gpu:
        detail = "NVIDIA's container toolkit is there" if engine.has_gpus else "a GPU, but no way into containers"
        todo = "install nvidia-container-toolkit, nvidia-ctk runtime configure, restart the engine"
        yield Finding("gpu in containers", engine.has_gpus, detail, todo)


def _compose(plugin: str) -> Finding:
    if _major(plugin) >= MIN_COMPOSE:
        return Finding("docker compose", True, f"version {plugin}")
    old = _output("docker-compose", "version", "--short")
    seen = f"only version {plugin or old}" if plugin or old else "no such plugin"
    todo = "install docker-compose-plugin (Debian 13: docker-compose); only docker compose up needs it"
    return Finding("docker compose", False, seen, todo)


def _major(version: str) -> int:
    """Return the first number of a version such as v2.26.1-4; 0 if there is none."""
    number = version.lstrip("v").partition(".")[0]
    return int(number) if number.isdigit() else 0


def _memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 10**6


def _succeeds(*command: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True).returncode == 0
    return False


def _output(*command: str) -> str:
    """Return what a program prints, or "" if it fails or is not there."""
    with contextlib.suppress(FileNotFoundError):
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""
    return ""
