"""Shared fixtures, and the rule that `REQUIRE=netns,...` turns a skipped layer into a failure."""

import os
import shutil
import subprocess

import pytest

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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not any(item.get_closest_marker("netns") for item in items):
        return
    missing = _missing_for_netns()
    if missing is None:
        return
    if "netns" in REQUIRED_LAYERS:
        raise pytest.UsageError(f"REQUIRE=netns, but this machine lacks {missing}")
    skip = pytest.mark.skip(reason=f"netns tests need {missing}")
    for item in items:
        if item.get_closest_marker("netns"):
            item.add_marker(skip)
