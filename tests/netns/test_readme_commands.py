"""The README's commands, as they stand there, in the order in which they stand there."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "testbed doctor": "kernel",
    "testbed validate scenarios/quickstart.yaml": "scenarios/quickstart.yaml: ok",
    "testbed run scenarios/smoke.yaml": "results: results/smoke-",
    "testbed calibrate scenarios/smoke.yaml": "d0→d1",
    "testbed up scenarios/smoke.yaml": "10.77.0.2",
    "testbed exec d0 -- ip address": "10.77.0.1/24",
    "testbed status": "smoke",
    "testbed down": "removed",
    "testbed sweep scenarios/sweeps/vit-rates-small.yaml --dry-run": "3 of 3 cells",
}
"""Command, and what it must say."""


@pytest.fixture
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tb-"))
    (folder / "scenarios").symlink_to(ROOT / "scenarios")
    yield folder
    shutil.rmtree(folder)


def test_readme_commands_work_one_after_the_other(place: Path) -> None:
    surroundings = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TESTBED_STATE_DIR": str(place / "state"),
        "ASTRA_CACHE": str(place / "cache"),
    }
    for command, expected in COMMANDS.items():
        done = subprocess.run(command.split(), cwd=place, env=surroundings, capture_output=True, text=True, timeout=120)
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"{command}\n{said}"
        assert expected in said, f"{command}\n{said}"
