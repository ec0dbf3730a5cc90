"""Real events under a benchmark: a device is killed, stands still, or is cut off, by each policy."""

from pathlib import Path
from typing import Any

import pytest
from whole_runs import cli, logs, table, write

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

HAPPENS_S = 25.0
"""When it happens: ranks have loaded by then, and have most of the requests before them."""
REQUESTS = 90
"""Half a second each, by the links."""
CONFIG = {
    "model": {"family": "vit", "size": "tiny", "image_size": 64},
    "strategies": [{"name": "prism", "num_segments": 5}],
    "requests": REQUESTS,
    "warmup": 1,
}


def bench(place: Path, policy: str, events: list[dict[str, Any]]) -> tuple[int, str]:
    config = CONFIG | {"failures": {"on_failure": policy}}
    scenario = write(
        place,
        [],
        devices={"count": 3},
        links={"default": {"rate_mbps": 0.15}},
        events=events,
        workload={"command": ["astra", "bench"], "config": config},
    )
    done = cli(place, "run", scenario, "--out", place / "out", "--no-calibrate", timeout=280)
    return done.returncode, done.stdout + done.stderr


def test_killed_device_ends_the_run_by_default(place: Path) -> None:
    code, said = bench(place, "fail", [{"at_s": HAPPENS_S, "device": "d2", "action": "kill"}])
    assert code == 1, said
    assert "rank 2 (d2) is lost: its connection broke; rank 0 waited for" in said + logs(place, "d0") + logs(
        place, "d1"
    )
    assert len(table(place / "out", "requests")) < REQUESTS


def test_device_that_stands_still_is_done_without_and_comes_back(place: Path) -> None:
    events = [
        {"at_s": HAPPENS_S, "device": "d1", "action": "pause"},
        {"at_s": HAPPENS_S + 4, "device": "d1", "action": "resume"},
    ]
    code, said = bench(place, "degrade", events)
    assert code == 0, said
    rows = table(place / "out", "requests")
    assert [int(row["request"]) for row in rows] == list(range(REQUESTS))
    degraded = [row["degraded"] for row in rows]
    assert "1" in degraded
    assert degraded[0] == degraded[-1] == ""


def test_device_that_is_cut_off_leaves_its_tokens_to_the_others(place: Path) -> None:
    events = [{"at_s": HAPPENS_S, "link": {"between": ["d2", other]}, "action": "partition"} for other in ("d0", "d1")]
    code, said = bench(place, "replan", events)
    assert code == 0, said
    rows = table(place / "out", "requests")
    assert [int(row["request"]) for row in rows] == list(range(REQUESTS))
    sizes = [row["world_size"] for row in rows]
    assert (sizes[0], sizes[-1]) == ("3", "2")
    assert sum(row["attempts"] == "2" for row in rows) == 1
    assert "rank 2 (d2) is lost: it is cut off" in logs(place, "d0")
