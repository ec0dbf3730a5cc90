"""Ranks as processes: one that stands still is lost, one that computes for long is not."""

import csv
import re
import signal
import subprocess
import time
from pathlib import Path

from test_worker_processes import EXIT_WAIT_S, started

from astra.control import Limits, Position
from astra.control.opening import open_control
from astra.environment import Environment

DETECT_S = 1.0
NOTICE_SLACK_S = 6.0
"""From noticing to exit: a process has to end, on a busy machine."""
HELD_S = 3 * DETECT_S
LINE = re.compile(r"(\d+)/\d+")


def wait_until(survivor: subprocess.Popen[str], done: int) -> None:
    """Read rank 0's progress until so many requests are answered."""
    assert survivor.stderr is not None
    for line in survivor.stderr:
        found = LINE.search(line)
        if found and int(found[1]) >= done:
            return
    raise AssertionError("rank 0 ended before")


def test_stopped_process_is_noticed_and_named(tmp_path: Path) -> None:
    config = {"strategies": ["sequence"], "requests": 100_000, "warmup": 0, "failures": {"detect_s": DETECT_S}}
    with started(3, config, tmp_path) as (survivor, other, victim):
        wait_until(survivor, 3)
        victim.send_signal(signal.SIGSTOP)
        stopped_s = time.monotonic()
        error = survivor.communicate(timeout=EXIT_WAIT_S)[1].strip().splitlines()[-1]
        other.communicate(timeout=EXIT_WAIT_S)
        assert time.monotonic() - stopped_s < DETECT_S + NOTICE_SLACK_S
    assert (survivor.returncode, other.returncode) == (1, 1)
    assert "rank 2 is lost: it has not reported for" in error
    assert "rank 0 waited for" in error


def test_stopped_process_that_goes_on_takes_part_again(tmp_path: Path) -> None:
    config = {"strategies": ["sequence"], "requests": 1000, "warmup": 0, "failures": {"on_failure": "replan"}}
    with started(2, config, tmp_path) as (survivor, victim):
        wait_until(survivor, 3)
        victim.send_signal(signal.SIGSTOP)
        time.sleep(HELD_S)
        victim.send_signal(signal.SIGCONT)
        errors = [process.communicate(timeout=EXIT_WAIT_S)[1] for process in (survivor, victim)]
        assert (survivor.returncode, victim.returncode) == (0, 0), errors
    with (tmp_path / "out" / "requests.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["request"]) for row in rows] == list(range(1000))
    sizes = [row["world_size"] for row in rows]
    assert sizes[0] == "2"
    assert "1" in sizes


def test_rank_that_computes_for_long_is_not_lost(tmp_path: Path) -> None:
    """Both ends report from their threads; what the ranks themselves do takes three times the limit."""
    socket = tmp_path / "control"
    places = [Environment(rank, 2, "127.0.0.1", 1, tmp_path, control_endpoint=f"ipc://{socket}") for rank in (0, 1)]
    limits = Limits("fail", DETECT_S, 20.0)
    with open_control(places[0], limits) as host, open_control(places[1], limits) as guest:
        # The guest's word that it is free reaches the host by its thread, so that one thread can do both here.
        guest._presence.free()  # type: ignore[attr-defined]
        epoch = host.first_epoch()
        assert epoch is not None
        assert guest.first_epoch() == epoch
        until_s = time.monotonic() + HELD_S
        while time.monotonic() < until_s:
            sum(range(100_000))
        for end in (host, guest):
            end._presence._watch.check(())  # type: ignore[attr-defined]
        assert host.gone == frozenset()
        assert Position(0, 0, 0) == (epoch.job, epoch.request, epoch.message)
