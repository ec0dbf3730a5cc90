"""The program that compares predicted with measured latencies, on folders as runs and sweeps leave them."""

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "bench" / "forecast_figures.py"
SUMMARY = """strategy,settings,latency_p50_s,latency_predicted_s
single,,2.0,2.1
sequence,wire=int8,1.0,0.5
astra,G=1,1.0,
"""
PREDICTIONS = """strategy,settings,latency_predicted_s,compute_s,encode_s,network_s,round_trips_s
single,,2.1,2.1,0,0,0
sequence,wire=int8,0.5,0.25,0.125,0.0625,0.0625
"""


def compare(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, PROGRAM, folder], capture_output=True, text=True, check=False)


def write_run(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "summary.csv").write_text(SUMMARY)
    (folder / "predictions.csv").write_text(PREDICTIONS)


def test_figures_of_a_sweep_name_cells_strategies_and_errors(tmp_path: Path) -> None:
    for rate in (50, 100):
        write_run(tmp_path / "cells" / f"rate_mbps={rate}-0a" / "run-1")
    lines = compare(tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in lines if "run-1" in line] == [
        "rate_mbps=50-0a/run-1",
        "rate_mbps=100-0a/run-1",
    ]
    (sequence, _) = (line.split() for line in lines if "wire=int8" in line)
    assert " ".join(sequence) == "sequence wire=int8 1.000 s 0.500 s -50.0 % 0.250 0.125 0.062 0.062"
    assert lines[-1] == "2 of 4 within 15%; -50.0 to +5.0 %, median -22.5 %"


def test_figures_of_one_run_bear_its_name(tmp_path: Path) -> None:
    write_run(tmp_path / "mine")
    assert "mine " in compare(tmp_path / "mine").stdout


def test_figures_need_predictions(tmp_path: Path) -> None:
    done = compare(tmp_path)
    assert done.returncode == 1
    assert "a summary.csv with latency_predicted_s must be below it, got none" in done.stderr
