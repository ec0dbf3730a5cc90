"""Keys in containers: there by default, out of a program's reach but for its own, and without them nobody is heard."""

import json
import subprocess
from pathlib import Path

import pytest
import zmq
from whole_runs import logs, run, start, state_of_run, wait_for_line, write

from testbed.protocol.frames import encode
from testbed.protocol.from_agents import Hello
from testbed.runtimes.container import AGENT_KEYS, CONTROL_PORT

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]


def test_programs_get_their_own_keys_by_default_and_not_the_agents(place: Path) -> None:
    script = f'stat -c "%a %u" "$CURVE_KEYS"; id -u; cat "$CURVE_KEYS"; echo; cat {AGENT_KEYS} || echo refused'
    done = run(place, ["sh", "-c", script], runtime="docker")
    assert done.returncode == 0, done.stdout + done.stderr
    said = logs(place, "d1").splitlines()
    assert said[:2] == ["600 10001", "10001"]
    assert set(json.loads(said[2])) == {"secret", "public"}
    assert said[-1] == "refused"
    assert json.loads((place / "out" / "manifest.json").read_text())["curve"] is True


def test_programs_get_no_keys_where_the_scenario_says_so(place: Path) -> None:
    done = run(place, ["sh", "-c", 'echo "keys: $CURVE_KEYS"'], runtime="docker", security={"curve": "never"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert logs(place, "d0") == "keys: \n"


def test_stranger_without_keys_is_not_heard_by_the_controller(place: Path) -> None:
    scenario = write(place, ["sleep", "5"])
    with start(place, "run", scenario, "--runtime", "docker", "--out", place / "out", "--no-calibrate") as process:
        wait_for_line(process, "running sleep")
        network = f"testbed-{state_of_run(place)['run_id']}-control"
        shown = subprocess.run(["docker", "network", "inspect", network], capture_output=True, text=True, check=True)
        gateway = json.loads(shown.stdout)[0]["IPAM"]["Config"][0]["Gateway"]
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.linger = 0
            stranger.identity = b"d0"  # would take d0's place
            stranger.connect(f"tcp://{gateway}:{CONTROL_PORT}")
            stranger.send(encode(Hello(device="d0", address="10.0.0.1", pid=1, life="stranger")))
            assert not stranger.poll(2000), "not even a ping"
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait(30) == 0, said
