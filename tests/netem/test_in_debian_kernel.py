"""Delay and jitter for real: boots a kernel that has netem in an emulated machine and runs the tests of links there.

Nothing there depends on how busy this machine is: the emulated machine's clock counts its own instructions.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.netem, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "in-debian-kernel"
LIMIT_S = 3000
"""Seconds of this machine for a minute's or two's work: other tests may run beside this one, and go first."""
LINKS = ("tests/netns/test_netem.py", "tests/netns/test_shaper.py")
QUICK = "netem or kernel_has or kernel_loses or twice or clear or pins_cubic"
"""Of the tests of the shaper those that check what the kernel keeps, not how fast it is: it is an emulated one."""


def in_debian_kernel(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "REQUIRE": "netns", "PY_COLORS": "0"}
    line = ["setpriv", "--pdeathsig", "TERM", "nice", "-n", "10", str(SCRIPT), *command]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S)


def test_in_debian_kernel_returns_output_and_status() -> None:
    done = in_debian_kernel("sh", "-c", "tc qdisc add dev lo root netem delay 1ms && tc qdisc show dev lo; exit 7")
    assert (done.returncode, "netem" in done.stdout) == (7, True), done.stdout + done.stderr


def test_in_debian_kernel_links_are_delayed_as_asked() -> None:
    tests = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--tb=short", "-k", QUICK, *LINKS]
    done = in_debian_kernel(*tests)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout), done.stdout
    assert "skipped" not in done.stdout, done.stdout
