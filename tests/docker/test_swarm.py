"""A stack over two engines: devices on both, an overlay between, links shaped and calibrated, a scenario finished."""

import os
import subprocess
from pathlib import Path

import pytest

from testbed.keys import AGENT_FILE, CONTROLLER_FILE, make_control_keys

pytestmark = [pytest.mark.docker, pytest.mark.timeout(420)]

ROOT = Path(__file__).parents[2]
SCENARIO = """
name: far
seed: 3
devices: {count: 4, memory_mb: 400}
links: {default: {rate_mbps: 20, loss_pct: 1}}
workload: {command: [grep, CapEff, /proc/self/status]}
"""
SCRIPT = """
set -eu
docker stack deploy --resolve-image never -c images/stack.yml testbed >/dev/null
state() { docker service ps testbed_controller --format '{{.CurrentState}}'; }
until state | grep -E 'Complete|Failed|Rejected'; do sleep 1; done
docker service logs --raw testbed_controller 2>&1
for host in "$DOCKER_HOST" "$WORKER_HOST"; do
    label=com.docker.swarm.service.name=testbed_device
    echo "devices here: $(docker --host "$host" ps --all --quiet --filter label=$label | wc -l)"
done
docker stack rm testbed >/dev/null
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="missing: root, for a swarm of two engines on one machine")
def test_stack_runs_a_scenario_on_two_engines(tmp_path: Path) -> None:
    (tmp_path / "scenario.yaml").write_text(SCENARIO)
    for keys, name in zip(make_control_keys(), (CONTROLLER_FILE, AGENT_FILE), strict=True):
        keys.write(tmp_path / name)
    variables = {"SCENARIO": str(tmp_path / "scenario.yaml"), "DEVICES": "4", "CPUS": "0", "MEMORY_MB": "400"}
    variables["KEYS"] = str(tmp_path)
    done = subprocess.run(
        ["scripts/with-swarm", "sh", "-c", SCRIPT],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("Complete"), done.stdout
    assert "measurements of the links, all within tolerance" in done.stdout
    assert done.stdout.count("devices here: 2") == 2
