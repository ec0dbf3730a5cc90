"""A finished run that is run again, and what is said of the two."""

import json
import sys
from pathlib import Path

import pytest
from whole_runs import cli, run, table

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

ANSWER = """
import json, os, socket, sys, time
call = socket.socket(socket.AF_UNIX)
call.connect(os.environ["TESTBED_SOCKET"])
row = {"rank": int(os.environ["RANK"]), "latency_s": time.time(), "answer_digest": ANSWER}
call.sendall(json.dumps({"op": "row", "table": "requests", "row": row}).encode() + b"\\n")
call.makefile().readline()
"""
TRACE = "\n".join(f"{at / 10},{5 + at % 2}" for at in range(5))
EVENTS = [
    {"at_s": 0.1, "link": {"from": "d0", "to": "d1"}, "trace": {"file": "x", "format": "csv", "text": TRACE}},
]
LINKS = {"default": {"rate_mbps": 50, "loss_pct": 10}}


def program(answer: str) -> list[str]:
    return [sys.executable, "-c", "import time; time.sleep(1)\n" + ANSWER.replace("ANSWER", answer)]


def test_replay_of_a_run_that_answers_the_same_finds_no_difference(place: Path) -> None:
    assert run(place, program('"always"'), links=LINKS, events=EVENTS).returncode == 0
    again = cli(place, "replay", place / "out", "--out", place / "again")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "the same: packets lost by position" in again.stdout
    for out in (place / "out", place / "again"):
        assert json.loads((out / "summary.json").read_text())["status"] == "ok"
        assert len({link["pattern_digest"] for link in table(out, "links")}) == 2
        (trace,) = table(out, "traces")
        assert (trace["source"], trace["destination"], trace["changes"]) == ("d0", "d1", "5")
        assert trace["asked_bits"] == "2200000"


def test_replay_names_an_answer_that_differs(place: Path) -> None:
    assert run(place, program("str(time.time())")).returncode == 0
    again = cli(place, "replay", place / "out", "--out", place / "again")
    assert again.returncode == 1
    assert again.stdout.count("differs  requests: must have the same rows, got only in") == 4


def test_replay_refuses_what_is_no_run(place: Path) -> None:
    done = cli(place, "replay", place)
    assert done.returncode == 2
    assert "RUN_DIR: must be the folder of a run" in done.stderr
