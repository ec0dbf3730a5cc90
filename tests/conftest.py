"""Shared fixtures, and the rule that `REQUIRE=netns,...` turns a skipped layer into a failure."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from whole_runs import TESTBED, environment

REQUIRED_LAYERS = frozenset(filter(None, os.environ.get("REQUIRE", "").split(",")))


def _missing_for_netns() -> str | None:
    """Name what keeps this machine from making network namespaces, or None."""
    for program in ("ip", "tc", "nft", "ethtool"):
        if shutil.which(program) is None:
            return f"the program {program}"
    if os.geteuid() != 0:
        return "root"
    made = subprocess.run(["unshare", "--net", "true"], capture_output=True)
    return None if made.returncode == 0 else "permission to make network namespaces"


def _missing_for_docker() -> str | None:
    """Name what keeps this machine from running containers of our image, or None."""
    if shutil.which("docker") is None:
        return "the program docker"
    for line, what in (
        (["docker", "version"], "a running engine (scripts/with-docker-engine starts one)"),
        (
            ["docker", "image", "inspect", os.environ.get("TESTBED_IMAGE", "astra-testbed:latest")],
            "the image (images/build)",
        ),
        (["docker", "compose", "version"], "the Compose plugin"),
    ):
        if subprocess.run(line, capture_output=True).returncode != 0:
            return what
    return None


def _missing_for_netem() -> str | None:
    """Name what keeps this machine from booting a kernel that has netem, or None."""
    for program in ("qemu-system-x86_64", "busybox", "modprobe"):
        if shutil.which(program) is None:
            return f"the program {program} (scripts/in-debian-kernel true installs all that it needs)"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kernel = cache / "astra-testbed" / "debian-kernel" / "initrd"
    return None if kernel.exists() else f"a kernel in {kernel.parent} (scripts/in-debian-kernel true fetches it)"


def _missing_for_browser() -> str | None:
    """Name what keeps this machine from opening a page, or None."""
    found = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    return None if found else "the program chromium (Debian's package of that name)"


LAYERS = {
    "netns": _missing_for_netns,
    "docker": _missing_for_docker,
    "netem": _missing_for_netem,
    "browser": _missing_for_browser,
}


def pytest_configure(config: pytest.Config) -> None:
    """Let scenarios of tests be required where their layer is."""
    config.option.testbed_require |= "netns" in REQUIRED_LAYERS


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for layer, find_missing in LAYERS.items():
        belonging = [item for item in items if item.get_closest_marker(layer)]
        missing = find_missing() if belonging else None
        if missing is None:
            continue
        if layer in REQUIRED_LAYERS:
            raise pytest.UsageError(f"REQUIRE={layer}, but this machine lacks {missing}")
        skip = pytest.mark.skip(reason=f"missing for {layer} tests: {missing}")
        for item in belonging:
            item.add_marker(skip)


@pytest.fixture
def place() -> Iterator[Path]:
    """A short folder (Unix socket paths are limited to 107 bytes) for results, with state and cache of its own."""
    folder = Path(tempfile.mkdtemp(prefix="tb-"))
    yield folder
    subprocess.run([*TESTBED, "down"], env=environment(folder), capture_output=True, timeout=60)
    shutil.rmtree(folder)
