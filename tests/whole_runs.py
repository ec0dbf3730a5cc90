"""Whole runs by the command line, for the tests of every runtime: scenarios, and folders to run them in."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

TESTBED = [sys.executable, "-m", "testbed"]


def environment(place: Path) -> dict[str, str]:
    """Surroundings of a run whose state and cache are its own."""
    own = {"TESTBED_STATE_DIR": str(place / "state"), "ASTRA_CACHE": str(place / "cache"), "COLUMNS": "200"}
    return {**os.environ, **own}


def write(place: Path, command: list[str], *, count: int = 2, **changes: Any) -> Path:
    """Write a small scenario that runs a command, with some of its blocks replaced."""
    scenario: dict[str, Any] = {
        "name": "test",
        "seed": 1,
        "devices": {"count": count, "cpus": 0.5, "memory_mb": 500},
        "links": {"default": {"rate_mbps": 50}},
        "workload": {"command": command, "config": {"answer": 42}},
        **changes,
    }
    path = place / "scenario.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(scenario, file)
    return path


def cli(place: Path, *arguments: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `testbed` to its end."""
    line = [*TESTBED, *map(str, arguments)]
    return subprocess.run(line, cwd=place, env=environment(place), capture_output=True, text=True, timeout=timeout)


def run(
    place: Path, command: list[str], *options: str, runtime: str = "netns", **changes: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command on small devices, results in `out`."""
    scenario = write(place, command, **changes)
    return cli(place, "run", scenario, "--runtime", runtime, "--out", place / "out", "--no-calibrate", *options)


def start(place: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start `testbed`, to be looked at meanwhile."""
    line = [*TESTBED, *map(str, arguments)]
    return subprocess.Popen(
        line, cwd=place, env=environment(place), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    """Read what a process says until it says `text`."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the process ended without saying {text!r}")


def logs(place: Path, device: str) -> str:
    """What the program on a device printed."""
    return (place / "out" / "logs" / f"{device}.log").read_text()


def table(out: Path, name: str) -> list[dict[str, str]]:
    """The rows of a table of a run folder."""
    with (out / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def state_of_run(place: Path) -> dict[str, Any]:
    """What the one run that goes on has written down about itself."""
    (path,) = (place / "state").glob("*/state.json")
    state: dict[str, Any] = json.loads(path.read_text())
    return state
