"""Sweeps in network namespaces: cells share devices and a loaded program, killed sweeps go on, nothing stays behind."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from whole_runs import cli, start, wait_for_line, write

from testbed import load_results

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
SMOKE_TIMEOUT_S = 900
"""Each of two devices loads torch with half a core, which takes a minute where others work too."""

PROGRAM = """
import json, os, socket, time
call = socket.socket(socket.AF_UNIX)
call.connect(os.environ["TESTBED_SOCKET"])
stream = call.makefile("rw")
def ask(**request):
    stream.write(json.dumps(request) + "\\n"); stream.flush()
    reply = json.loads(stream.readline())
    assert reply["ok"], reply
    return reply
rank, times = int(os.environ["RANK"]), 0
asks = json.load(open(os.environ["TESTBED_CONFIG"]))["asks"] in ("all", f"d{rank}")
peer = socket.create_server(("", 5000)) if rank else None
ask(op="barrier", name="listening")
line = peer.accept()[0] if peer else socket.create_connection((os.environ["MASTER_ADDR"][:-1] + "2", 5000))
while True:
    times += 1
    if rank:
        line.recv(1 << 20, socket.MSG_WAITALL); line.sendall(b"!")
    else:
        began = time.monotonic(); line.sendall(bytes(1 << 20)); line.recv(1); taken = time.monotonic() - began
        ask(op="row", table="summary", row={"pid": os.getpid(), "times": times, "mbps": 8.388608 / taken})
        open(os.environ["TESTBED_OUT"] + f"/note{times}", "w").write("left")
    if not asks or not ask(op="again")["again"]:
        break
"""
RATES = [10, 40]
RATE_TOLERANCE = 0.25
"""For a megabyte over TCP, of a program that others keep from running."""


def sweep_file(place: Path, *, asks: str = "all", matrix: dict[str, Any] | None = None) -> Path:
    command = [sys.executable, "-c", PROGRAM]
    write(place, command, workload={"command": command, "config": {"asks": asks}})
    sweep = {
        "name": "rates",
        "base": "scenario.yaml",
        "matrix": {"links.default.rate_mbps": RATES, **(matrix or {})},
        "show": ["mbps"],
    }
    path = place / "sweep.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump(sweep, file)
    return path


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))


def nothing_is_left(place: Path) -> bool:
    pids = subprocess.run(["pgrep", "-f", str(place)], capture_output=True, text=True).stdout.split()
    return not pids and not list((place / "state").glob("*"))


def test_cells_that_differ_in_links_share_the_loaded_program(place: Path) -> None:
    done = cli(place, "sweep", sweep_file(place), "--out", place / "out", "--repeat", "2", "--no-calibrate", "--plain")
    assert done.returncode == 0, done.stdout + done.stderr
    measured = rows(place / "out")
    assert len({row["pid"] for row in measured}) == 1
    assert sorted(int(row["times"]) for row in measured) == [1, 2, 3, 4]
    for row in measured:
        asked = float(row["links.default.rate_mbps"])
        assert float(row["mbps"]) == pytest.approx(asked, rel=RATE_TOLERANCE)
        folder = place / "out" / row["folder"]
        assert [path.name for path in (folder / "devices" / "d0").iterdir()] == [f"note{row['times']}"]
        with (folder / "links.csv").open() as file:
            counted = {(link["source"], link["destination"]): int(link["bytes"]) for link in csv.DictReader(file)}
        assert 1 << 20 < counted["d0", "d1"] < 1.2 * (1 << 20)  # of this cell alone
    assert "report: " in done.stdout
    assert (place / "out" / "report.html").exists()
    assert done.stdout.count("starting 2 devices") == 1
    assert nothing_is_left(place)


@pytest.mark.parametrize("asks", ["none", "d0", "d1"])
def test_program_that_does_not_ask_everywhere_is_started_for_each_cell(place: Path, asks: str) -> None:
    done = cli(place, "sweep", sweep_file(place, asks=asks), "--out", place / "out", "--no-calibrate", "--plain")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len({row["pid"] for row in rows(place / "out")}) == 2
    assert done.stdout.count("starting 2 devices") == 1


def test_another_workload_is_started_on_the_same_devices(place: Path) -> None:
    sweep = sweep_file(place, matrix={"workload.config.other": [1, 2]})
    done = cli(place, "sweep", sweep, "--out", place / "out", "--plain")
    assert done.returncode == 0, done.stdout + done.stderr
    measured = rows(place / "out")
    assert [int(row["times"]) for row in measured] == [1, 2, 1, 2]
    assert done.stdout.count("starting 2 devices") == 1
    folders = [place / "out" / row["folder"] for row in measured]
    asked = [{float(row["asked"]) for row in calibration(folder) if row["metric"] == "rate_mbps"} for folder in folders]
    assert asked == [{float(row["links.default.rate_mbps"])} for row in measured]


def calibration(folder: Path) -> list[dict[str, str]]:
    with (folder / "calibration.csv").open() as file:
        return list(csv.DictReader(file))


def test_single_run_of_a_program_that_asks_ends(place: Path) -> None:
    sweep_file(place)
    done = cli(place, "run", place / "scenario.yaml", "--out", place / "out", "--no-calibrate")
    assert done.returncode == 0, done.stdout + done.stderr
    frame = load_results(place / "out")
    assert list(frame["times"]) == [1]
    assert (place / "out" / "devices" / "d0" / "note1").read_text() == "left"


def test_program_that_fails_costs_its_cell_only(place: Path) -> None:
    script = f'[ "$RANK" = 1 ] && grep -q 1 $TESTBED_CONFIG && exit 3; {sys.executable} -c "" ; exit 0'
    write(place, [], workload={"command": ["sh", "-c", script], "config": {"x": 0}})
    sweep = {"name": "s", "base": "scenario.yaml", "matrix": {"workload.config.x": [1, 2], "seed": [5, 6]}}
    with (place / "sweep.yaml").open("w") as file:
        YAML(typ="safe").dump(sweep, file)
    done = cli(place, "sweep", place / "sweep.yaml", "--out", place / "out", "--no-calibrate", "--plain")
    assert done.returncode == 1, done.stdout + done.stderr
    summaries = [json.loads(path.read_text()) for path in (place / "out" / "cells").glob("*/run-1/summary.json")]
    assert sorted(each["status"] for each in summaries) == ["failed", "failed", "ok", "ok"]
    assert done.stdout.count("device d1: the program ended with exit code 3") >= 2
    assert nothing_is_left(place)


@pytest.mark.timeout(SMOKE_TIMEOUT_S)
def test_smoke_sweep_that_is_killed_goes_on_and_measures_all_cells(place: Path) -> None:
    sweep = place / "sweep.yaml"
    matrix = "matrix: {links.default.rate_mbps: [20, 50], links.default.loss_pct: [0, 1]}"
    patient = "set: {workload: {config: {failures: {detect_s: 60}}}}"  # with a machine that has others to serve
    sweep.write_text(f"name: smoke\nbase: {ROOT / 'scenarios' / 'smoke.yaml'}\n{patient}\n{matrix}\n")
    line = ["sweep", sweep, "--out", place / "out", "--plain", "--go-on"]
    with start(place, *line) as process:
        wait_for_line(process, "run 2 of 4")
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    assert len(rows(place / "out")) == 3  # one cell, three strategies
    done = cli(place, *line, timeout=SMOKE_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "run 3 of 3" in done.stdout
    frame = load_results(place / "out")
    assert len(frame) == 12
    assert set(frame.groupby(["links.default.rate_mbps", "links.default.loss_pct"]).size()) == {3}
    assert (frame.loc[frame["strategy"] != "single", "agreement_top1_pct"] >= 0).all()
    lossy = frame[(frame["links.default.loss_pct"] == 1) & (frame["strategy"] == "sequence")]
    assert (lossy["bytes_per_request_counted"] > 0).all()
    assert nothing_is_left(place)
