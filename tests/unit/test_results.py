"""Tidy results: of a single run, of a sweep, and what repeated runs have in common."""

import json
from pathlib import Path
from typing import Any

import pytest

from testbed import load_results
from testbed.errors import InputError
from testbed.results import OWN, SETTING, Row, run_rows, spread, write_table

SCENARIO = """
name: one
seed: 3
devices: {count: 2, cpus: 0.5}
links: {default: {rate_mbps: 10, loss_pct: 1}}
workload: {command: [x], config: {strategies: [single, {name: astra}]}}
"""


def run_folder(folder: Path, *rows: Row, status: str = "ok") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "scenario.yaml").write_text(SCENARIO)
    summary = {"status": status, "started_utc": "2026-11-21T10:00:00+00:00", "duration_s": 1.5, "rows": rows}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def row(strategy: str, latency_s: float, **more: Any) -> Row:
    return {"strategy": strategy, "settings": None, "latency_p50_s": latency_s, **more}


def test_rows_of_a_run_say_what_was_measured_in_which_setting(tmp_path: Path) -> None:
    (tidy,) = run_rows(run_folder(tmp_path, row("single", 0.5)), axes=["workload.config.strategies[1].name"])
    assert list(tidy)[: len(OWN)] == list(OWN)
    assert list(tidy)[len(OWN) : len(OWN) + len(SETTING)] == list(SETTING)
    wanted = {"run": 1, "scenario": "one", "status": "ok", "seed": 3, "devices.count": 2, "links.default.loss_pct": 1}
    wanted |= {"strategy": "single", "latency_p50_s": 0.5, "workload.config.strategies[1].name": "astra"}
    assert wanted.items() <= tidy.items()


def test_column_of_the_summary_never_hides_one_of_ours(tmp_path: Path) -> None:
    (tidy,) = run_rows(run_folder(tmp_path, {"seed": 9, "run": 8, "x": 1}))
    assert (tidy["seed"], tidy["run"], tidy["summary.seed"], tidy["summary.run"], tidy["x"]) == (3, 1, 9, 8, 1)


def test_load_results_of_a_run_folder_is_a_data_frame(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, row("single", 0.5), row("astra", 0.25, settings="G=1"))
    frame = load_results(folder)
    assert list(frame.groupby("strategy")["latency_p50_s"].mean()) == [0.25, 0.5]
    write_table(folder / "results.csv", run_rows(folder))
    again = load_results(str(folder))
    assert list(again["settings"].isna()) == [True, False]
    assert list(again.columns) == list(frame.columns)
    assert list(again["links.default.rate_mbps"]) == [10, 10]


def test_load_results_of_nothing_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"load_results: must be given a folder of results, got '.*'; testbed run"):
        load_results(tmp_path)


def test_run_rows_of_no_run_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be the folder of a run"):
        run_rows(tmp_path)


def measured(cell: str, run: int, **values: Any) -> Row:
    return {**dict.fromkeys([*OWN, *SETTING]), "cell": cell, "run": run, "seed": 3, **values}


def test_spread_is_over_the_runs_of_a_cell() -> None:
    rows = [measured("a", run, strategy="x", time_s=seconds) for run, seconds in enumerate([1.0, 2.0, 6.0], 1)]
    rows += [measured("b", 1, strategy="x", time_s=5.0)]
    first, second = spread(rows)
    assert {"cell": "a", "strategy": "x", "metric": "time_s", "runs": 3, "mean": 3.0}.items() <= first.items()
    assert first["std"] == pytest.approx(7**0.5)
    assert (first["min"], first["max"], first["seed"]) == (1.0, 6.0, 3)
    assert (second["cell"], second["runs"], second["std"]) == ("b", 1, None)


def test_spread_tells_rows_apart_by_their_texts_and_then_by_their_order() -> None:
    rows = [
        measured("a", run, kind=kind, seen_digest=f"{run}", time_s=10 * number + run)
        for run in (1, 2)
        for number, kind in enumerate(["x", "y", "x"])
    ]
    means = {(each["kind"], each["mean"]): each["runs"] for each in spread(rows)}
    assert means == {("x", 1.5): 2, ("y", 11.5): 2, ("x", 21.5): 2}


def test_spread_leaves_out_what_is_no_number() -> None:
    rows = [measured("a", 1, kind="x", good=True, count=3, nothing=None)]
    assert [each["metric"] for each in spread(rows)] == ["count"]
