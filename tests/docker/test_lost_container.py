"""A container that is killed under a benchmark, and started again."""

from pathlib import Path

import pytest
from whole_runs import cli, table, write

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

KILLED_S, RESTARTED_S = 30.0, 33.0
"""When it happens: ranks have loaded by then, and have requests before them until long after."""
REQUESTS = 200
"""Some 0.3 s each, by the links."""
CONFIG = {
    "model": {"family": "vit", "size": "tiny", "image_size": 64},
    "strategies": [{"name": "prism", "num_segments": 5}],
    "requests": REQUESTS,
    "warmup": 1,
    "failures": {"on_failure": "replan"},
}


def test_killed_container_is_done_without_and_joins_again(place: Path) -> None:
    scenario = write(
        place,
        [],
        devices={"count": 3},
        links={"default": {"rate_mbps": 0.15}},
        events=[
            {"at_s": KILLED_S, "device": "d2", "action": "kill"},
            {"at_s": RESTARTED_S, "device": "d2", "action": "restart"},
        ],
        workload={"command": ["astra", "bench"], "config": CONFIG},
    )
    done = cli(place, "run", scenario, "--runtime", "docker", "--out", place / "out", "--no-calibrate", timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = table(place / "out", "requests")
    assert [int(row["request"]) for row in rows] == list(range(REQUESTS))
    sizes = [row["world_size"] for row in rows]
    assert sizes[0] == sizes[-1] == "3"
    assert "2" in sizes
