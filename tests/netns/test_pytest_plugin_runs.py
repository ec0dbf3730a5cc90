"""The pytest plugin on real devices: runs that pass, fail and are cut off, several at once, and what is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from whole_runs import environment

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

END_S = 30.0
"""For a run whose pytest was killed to remove its devices, on a machine that has others to serve."""

MODULE = """
import sys
import pytest
from testbed.pytest_plugin import assert_metric

MEASURE = '''
import json, os, socket, time
call = socket.socket(socket.AF_UNIX)
call.connect(os.environ["TESTBED_SOCKET"])
stream = call.makefile("rw")
def ask(**request):
    stream.write(json.dumps(request) + "\\\\n"); stream.flush()
    return json.loads(stream.readline())
peer = socket.create_server(("", 5000)) if os.environ["RANK"] == "1" else None
ask(op="barrier", name="listening")
if peer:
    peer.accept()[0].recv(1 << 19, socket.MSG_WAITALL)
else:
    began = time.monotonic()
    line = socket.create_connection((os.environ["MASTER_ADDR"][:-1] + "2", 5000))
    line.sendall(bytes(1 << 19)); line.shutdown(socket.SHUT_WR); line.recv(1)
    ask(op="row", table="summary", row={"mbps": 8e-6 * (1 << 19) / (time.monotonic() - began)})
'''

def tree(*command):
    links = {"default": {"rate_mbps": 10}}
    return {"name": "t", "devices": {"count": 2, "cpus": 0.4}, "links": links, "workload": {"command": list(command)}}

@pytest.mark.scenario(tree(sys.executable, "-c", MEASURE), calibrate=False)
@pytest.mark.parametrize("rate_mbps", [10, 20])
def test_rate(scenario, rate_mbps):
    result = scenario.run({"links.default.rate_mbps": rate_mbps})
    assert_metric(result, "mbps", at_most=10.5)

@pytest.mark.scenario(tree("sh", "-c", "exit 3"), calibrate=False)
def test_broken(scenario):
    scenario.run()

@pytest.mark.scenario(tree("sleep", "170"), calibrate=False)
def test_endless(scenario):
    scenario.run()
"""
"""10.5: a rate may be 1 % more than was asked for, and the first frames pass at once; 20 Mbps are far above."""


def pytest_line(place: Path, *options: str) -> list[str]:
    (place / "test_links.py").write_text(MODULE)
    quickly = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    interruptible = ["env", "--default-signal=INT"]
    return [
        *interruptible,
        sys.executable,
        "-m",
        "pytest",
        "--rootdir",
        str(place),
        *quickly,
        *options,
        "test_links.py",
    ]


def devices_and_states(place: Path) -> list[str]:
    """What runs of this place have left, or have."""
    states = [path.name for path in (place / "state").glob("*")]
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    return [*states, *(line for line in spaces.splitlines() if any(state in line for state in states))]


def test_workers_run_scenarios_side_by_side_and_tests_fail_where_they_should(place: Path) -> None:
    line = pytest_line(place, "-n", "3", "-k", "not endless", "--testbed-results", "kept", "--testbed-require", "-rA")
    done = subprocess.run(line, cwd=place, env=environment(place), capture_output=True, text=True)
    assert "1 passed, 2 failed" in done.stdout or "2 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "PASSED test_links.py::test_rate[10]" in done.stdout
    assert "mbps (all rows) must be at most 10.5, got 1" in done.stdout
    assert "scenario t: device d" in done.stdout
    assert "the program ended with exit code 3" in done.stdout
    statuses = [json.loads(path.read_text())["status"] for path in place.glob("kept/*/summary.json")]
    assert sorted(statuses) == ["failed", "ok", "ok"]
    assert devices_and_states(place) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_pytest_that_is_interrupted_or_killed_leaves_nothing(place: Path, number: signal.Signals) -> None:
    line = pytest_line(place, "-k", "endless", "-s")
    with subprocess.Popen(line, cwd=place, env=environment(place), stdout=subprocess.PIPE, text=True) as process:
        assert any("running sleep" in text for text in process.stdout or ())
        assert devices_and_states(place) != []
        os.kill(process.pid, number)
        process.stdout.close()  # type: ignore[union-attr]
    deadline = time.monotonic() + END_S
    while devices_and_states(place):
        assert time.monotonic() < deadline
        time.sleep(0.05)
