"""What happens to whole devices while a program runs, the same in namespaces and in containers."""

import itertools
import json
import re
import signal
import time
from pathlib import Path

import pytest
from whole_runs import cli, logs, run, start, state_of_run, table, wait_for_line, write

from testbed.loss import Bernoulli, lost_positions

pytestmark = [pytest.mark.timeout(240)]

on_each_runtime = pytest.mark.parametrize(
    "runtime", [pytest.param("netns", marks=pytest.mark.netns), pytest.param("docker", marks=pytest.mark.docker)]
)
LATE_LIMIT_MS = 2000
"""An engine needs some 50 ms to pause or kill a container, and the machine may be busy."""
SEED, LOSS_PCT = 1, 10
LINKS = {"default": {"rate_mbps": 50, "loss_pct": LOSS_PCT}}
CAPS = {"count": 2}
"""Without CPU limits, under which a new agent takes seconds to start."""
TICK = "while [ $n -lt $until ]; do date +%s%N; sleep 0.05; n=$((n+1)); done"

SEND_FROM_D0 = """
import os, socket, subprocess, time
print("shaped", subprocess.run(["tc", "class", "show", "dev", "tb-ifb"], capture_output=True, text=True).stdout.split())
print("environment", sorted(item for item in os.environ.items()))
print("left", os.listdir(os.environ["TESTBED_OUT"]))
open(os.environ["TESTBED_OUT"] + "/note", "w").close()
peer = os.environ["MASTER_ADDR"].rsplit(".", 1)
if os.environ["RANK"] == "0":
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        for number in range(SECONDS * 20):
            try:
                datagrams.sendto(bytes(100), (f"{peer[0]}.{int(peer[1]) + 1}", 9))
            except OSError:
                pass  # an ICMP answer to an earlier one
            time.sleep(0.05)
else:
    time.sleep(4)
"""


@on_each_runtime
def test_restarted_device_is_shaped_before_its_program_starts_again(place: Path, runtime: str) -> None:
    events = [
        {"at_s": 0.5, "link": {"from": "d0", "to": "d1"}, "set": {"rate_mbps": 2}},
        {"at_s": 1.5, "device": "d1", "action": "restart"},
        {"at_s": 1.6, "link": {"from": "d0", "to": "d1"}, "set": {"queue_ms": 100}},
    ]
    python = ["python3", "-c", SEND_FROM_D0.replace("SECONDS", "16")]
    done = run(place, python, runtime=runtime, devices=CAPS, links=LINKS, events=events)
    assert done.returncode == 0, done.stdout + done.stderr
    said = logs(place, "d1")
    first, second = (re.findall(rf"^{word} (.*)$", said, re.MULTILINE) for word in ("shaped", "environment"))
    assert len(first) == len(second) == 2
    assert "50Mbit" in first[0]
    assert "2Mbit" in first[1]
    assert second[0] == second[1]
    assert re.findall(r"^left (.*)$", said, re.MULTILINE) == ["[]", "[]"]
    (restart,) = [row for row in table(place / "out", "events") if row["action"] == "restart"]
    assert restart["destination"] == "d1"
    times = [float(restart[name]) for name in ("intended_s", "applied_s", "acknowledged_s")]
    assert times == sorted(times)
    assert times[0] == 1.5
    assert [row["event"] for row in table(place / "out", "events")] == ["0", "1"]  # the third was due meanwhile


@on_each_runtime
def test_restarted_devices_links_lose_from_position_0_on(place: Path, runtime: str) -> None:
    events = [{"at_s": 1.0, "device": "d1", "action": "restart"}]
    python = ["python3", "-c", SEND_FROM_D0.replace("SECONDS", "12")]
    done = run(place, python, runtime=runtime, devices=CAPS, links=LINKS, events=events)
    assert done.returncode == 0, done.stdout + done.stderr
    (link,) = [row for row in table(place / "out", "links") if row["destination"] == "d1"]
    lost = lost_positions(Bernoulli(LOSS_PCT / 100), seed=SEED, source="d0", destination="d1")
    assert 0 < int(link["packets"]) < 12 * 20
    assert int(link["lost"]) == sum(position < int(link["packets"]) for position in lost)


@on_each_runtime
def test_device_is_paused_resumed_and_killed(place: Path, runtime: str) -> None:
    events = [
        {"at_s": 0.5, "device": "d0", "action": "pause"},
        {"at_s": 2.5, "device": "d0", "action": "resume"},
        {"at_s": 1.0, "device": "d1", "action": "kill"},
    ]
    script = f"n=0; until=$((100 + 1000 * RANK)); {TICK}"
    done = run(place, ["sh", "-c", script], runtime=runtime, devices=CAPS, events=events)
    assert done.returncode == 0, done.stdout + done.stderr
    ticks = [int(line) / 1e9 for line in logs(place, "d0").split()]
    assert len(ticks) == 100
    assert max(b - a for a, b in itertools.pairwise(ticks)) == pytest.approx(2.0, abs=LATE_LIMIT_MS / 1e3)
    rows = sorted(table(place / "out", "events"), key=lambda row: int(row["event"]))
    assert [(row["action"], row["destination"]) for row in rows] == [("pause", "d0"), ("resume", "d0"), ("kill", "d1")]
    assert all(0 <= float(row["late_ms"]) < LATE_LIMIT_MS for row in rows)


@on_each_runtime
def test_device_that_is_paused_for_longer_than_agents_may_be_silent_goes_on(place: Path, runtime: str) -> None:
    events = [{"at_s": 0.5, "device": "d1", "action": "pause"}, {"at_s": 12.5, "device": "d1", "action": "resume"}]
    done = run(place, ["sh", "-c", f"n=0; until=30; {TICK}"], runtime=runtime, devices=CAPS, events=events)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(logs(place, "d1").split()) == 30


@on_each_runtime
def test_run_that_ends_while_a_device_restarts_leaves_nothing(place: Path, runtime: str) -> None:
    events = [
        {"at_s": 0.5, "device": "d1", "action": "pause"},
        {"at_s": 1.0, "device": "d2", "action": "restart"},
    ]
    scenario = write(place, ["sleep", "300"], devices={"count": 3}, events=events)
    with start(
        place, "run", scenario, "--runtime", runtime, "--out", place / "out", "--no-calibrate", "--plain"
    ) as process:
        wait_for_line(process, "running sleep")
        before = state_of_run(place)["agents"]
        time.sleep(1.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1
    assert set(before) == {"d0", "d1", "d2"}
    assert json.loads(cli(place, "status", "--json").stdout) == []
    assert json.loads((place / "out" / "summary.json").read_text())["status"] == "interrupted"


def test_restart_is_refused_where_nobody_could_do_it(place: Path) -> None:
    events = [{"at_s": 1, "device": "d1", "action": "restart"}, {"at_s": 2, "device": "d1", "action": "kill"}]
    done = run(place, ["true"], runtime="compose", events=events)
    assert done.returncode == 2
    assert "events[0].action: must be kill or pause or resume with --runtime compose, got 'restart'" in done.stderr
    assert "events[1]" not in done.stderr
    assert not (place / "out").exists()
