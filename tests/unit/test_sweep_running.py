"""A sweep that runs, fails, is interrupted, goes on and is merged, on devices that are not there."""

import csv
import json
from pathlib import Path

import pytest
from sweep_worlds import COUNT, RATE, FakeStage, go, make_sweep

from testbed import load_results
from testbed.errors import CalibrationError, DeviceError, InputError, InterruptError, UnsupportedError
from testbed.options import Options
from testbed.sweep.estimate import Estimate, duration_text
from testbed.sweep.folder import Description, SweepFolder
from testbed.sweep.merge import merge
from testbed.sweep.running import check_cells


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_sweep_runs_every_cell_once_on_as_few_devices_as_can_be(tmp_path: Path) -> None:
    stage = FakeStage()
    tally, said = go(make_sweep(tmp_path), tmp_path / "out", stage)
    assert stage.opened == [["2x10", "2x20"], ["3x10", "3x20"]]
    assert stage.follows == [True, False, True, False]
    assert (tally.ok, tally.num_met) == (True, 4)
    rows = table(tmp_path / "out" / "results.csv")
    assert [(row[COUNT], row[RATE], row["rate"]) for row in rows] == [
        ("2", "10.0", "10.0"),
        ("2", "20.0", "20.0"),
        ("3", "10.0", "10.0"),
        ("3", "20.0", "20.0"),
    ]
    assert "run 1 of 4: count=2, rate_mbps=10 (time left: unknown)" in said
    assert "run 4 of 4: count=3, rate_mbps=20 (time left: 0 s)" in said


def test_sweep_that_is_finished_has_nothing_left(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    go(sweep, tmp_path / "out", FakeStage())
    before = (tmp_path / "out" / "results.csv").read_text()
    stage = FakeStage()
    assert go(sweep, tmp_path / "out", stage)[0].ok
    assert stage.served == []
    assert (tmp_path / "out" / "results.csv").read_text() == before


def test_sweep_without_a_finished_run_has_no_results(tmp_path: Path) -> None:
    with pytest.raises(InterruptError):
        go(make_sweep(tmp_path), tmp_path / "out", FakeStage({1: KeyboardInterrupt()}))
    with pytest.raises(InputError, match="load_results: must be given a folder of results"):
        load_results(tmp_path / "out")


def test_interrupted_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    sweep, stage = make_sweep(tmp_path), FakeStage({2: KeyboardInterrupt()})
    with pytest.raises(InterruptError, match=r"interrupted; 1 of 4 runs are in .*; the same command goes on"):
        go(sweep, tmp_path / "out", stage)
    again = FakeStage()
    tally, _ = go(sweep, tmp_path / "out", again)
    assert again.served == ["2x20", "3x10", "3x20"]
    assert tally.ok
    assert len(table(tmp_path / "out" / "results.csv")) == 4


def test_run_that_was_cut_off_at_any_moment_begins_again(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    go(sweep, tmp_path / "out", FakeStage())
    cut, empty = sorted((tmp_path / "out" / "cells").glob("*/run-1"))[:2]
    summary = json.loads((cut / "summary.json").read_text())
    (cut / "summary.json").write_text(json.dumps({**summary, "status": "running"}))
    (empty / "summary.json").unlink()
    stage = FakeStage()
    go(sweep, tmp_path / "out", stage)
    assert len(stage.served) == 2
    assert len(table(tmp_path / "out" / "results.csv")) == 4


def test_run_that_fails_does_not_end_the_sweep_and_is_tried_again(tmp_path: Path) -> None:
    sweep, stage = make_sweep(tmp_path), FakeStage({1: DeviceError("d1 is gone")})
    tally, said = go(sweep, tmp_path / "out", stage)
    assert stage.opened == [["2x10", "2x20"], ["2x20"], ["3x10", "3x20"]]  # new devices after it
    assert tally.failed == ["count=2, rate_mbps=10, run 1: d1 is gone"]
    assert not tally.ok
    assert "failed: d1 is gone" in said
    assert len(table(tmp_path / "out" / "results.csv")) == 3
    again = FakeStage()
    assert go(sweep, tmp_path / "out", again)[0].ok
    assert again.served == ["2x10"]


def test_links_out_of_tolerance_cost_no_devices(tmp_path: Path) -> None:
    stage = FakeStage({1: CalibrationError("too slow")})
    tally, _ = go(make_sweep(tmp_path), tmp_path / "out", stage)
    assert stage.opened == [["2x10", "2x20"], ["3x10", "3x20"]]
    assert len(tally.failed) == 1


def test_expectation_that_is_not_met_is_a_result(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, matrix={COUNT: [2], RATE: [20, 50]})
    tally, _ = go(sweep, tmp_path / "out", FakeStage())
    assert tally.unmet == ["count=2, rate_mbps=50, run 1: rate (all rows) must be at most 30, got 50"]
    assert [row["status"] for row in table(tmp_path / "out" / "results.csv")] == ["ok", "failed"]
    again = FakeStage()
    go(sweep, tmp_path / "out", again)
    assert again.served == []


def test_repetitions_have_mean_and_spread(tmp_path: Path) -> None:
    sweep, stage = make_sweep(tmp_path, matrix={COUNT: [2], RATE: [10, 20]}), FakeStage()
    go(sweep, tmp_path / "out", stage, repeat=2)
    assert stage.served == ["2x10", "2x20", "2x10#2", "2x20#2"]
    times = {row[RATE]: row for row in table(tmp_path / "out" / "spread.csv") if row["metric"] == "time_s"}
    assert (times["10.0"]["mean"], times["10.0"]["min"], times["10.0"]["max"]) == ("2.0", "1.0", "3.0")
    assert float(times["20.0"]["std"]) == pytest.approx(2**0.5)
    more = FakeStage()
    go(sweep, tmp_path / "out", more, repeat=3)
    assert more.served == ["2x10#3", "2x20#3"]


def test_new_values_of_an_axis_leave_what_is_finished(tmp_path: Path) -> None:
    go(make_sweep(tmp_path), tmp_path / "out", FakeStage())
    wider, stage = make_sweep(tmp_path, matrix={COUNT: [2, 3], RATE: [5, 10, 20]}), FakeStage()
    go(wider, tmp_path / "out", stage)
    assert stage.served == ["2x5", "3x5"]
    assert [row[RATE] for row in table(tmp_path / "out" / "results.csv")] == ["5.0", "10.0", "20.0"] * 2


def test_folder_of_another_sweep_is_refused(tmp_path: Path) -> None:
    go(make_sweep(tmp_path), tmp_path / "out", FakeStage())
    with pytest.raises(InputError, match=r"--out: must be a new folder or one of this sweep, got .* of the sweep s"):
        go(make_sweep(tmp_path, name="other"), tmp_path / "out", FakeStage())
    with pytest.raises(InputError, match="must be the folder of a sweep"):
        go(make_sweep(tmp_path), tmp_path, FakeStage())


def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    described = Description.of(sweep, sweep.cells, repeat=1, shard=None)
    with (
        SweepFolder.open(tmp_path / "out", described),
        pytest.raises(InputError, match="--out: must be in no other sweep's use"),
        SweepFolder.open(tmp_path / "out", described),
    ):
        pass


def test_shards_merge_into_what_one_sweep_would_have_left(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    for number in (1, 2, 3):
        go(sweep, tmp_path / f"part{number}", FakeStage(), part=(number, 3))
    whole, missing = merge([tmp_path / f"part{number}" for number in (1, 2, 3)], tmp_path / "all")
    assert (len(whole.cells), missing) == (4, 0)
    frame = load_results(tmp_path / "all")
    assert sorted(zip(frame[COUNT], frame[RATE], strict=True)) == [(2, 10), (2, 20), (3, 10), (3, 20)]
    stage = FakeStage()
    go(sweep, tmp_path / "all", stage)
    assert stage.served == []


def test_merge_counts_what_is_missing_and_that_can_be_run(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path)
    go(sweep, tmp_path / "part1", FakeStage(), part=(1, 2))
    _, missing = merge([tmp_path / "part1"], tmp_path / "all")
    assert missing == 2
    stage = FakeStage()
    go(sweep, tmp_path / "all", stage)
    assert stage.served == ["3x10", "3x20"]


def test_merge_refuses_what_does_not_belong_together(tmp_path: Path) -> None:
    go(make_sweep(tmp_path), tmp_path / "one", FakeStage())
    go(make_sweep(tmp_path, name="other"), tmp_path / "other", FakeStage())
    with pytest.raises(InputError) as caught:
        merge([tmp_path / "one", tmp_path / "one", tmp_path / "other"], tmp_path / "one")
    text = str(caught.value)
    assert "name must be as in" in text
    assert "must be in one folder only" in text
    assert "--out: must be a new or empty folder" in text


def test_cells_that_this_machine_cannot_run_are_all_named_before_anything_starts(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path, set={"devices": {"cpus": 64}})
    with pytest.raises(UnsupportedError) as caught:
        check_cells(sweep.cells, Options())
    assert len(str(caught.value).splitlines()) == 4
    assert "count=2, rate_mbps=10: devices.cpus: must add up to at most this machine's" in str(caught.value)


def test_workload_checks_each_of_its_configs_once(tmp_path: Path) -> None:
    complain = ["sh", "-c", f"echo x >> {tmp_path}/calls; echo no good >&2; exit 2"]
    sweep = make_sweep(
        tmp_path,
        set={"workload": {"check": complain, "config": {}}},
        matrix={COUNT: [2], RATE: [10, 20], "workload.config.a": [1, 2]},
    )
    with pytest.raises(InputError) as caught:
        check_cells(sweep.cells, Options())
    assert (tmp_path / "calls").read_text().count("x") == 2
    assert [fault.rpartition(": ")[2] for fault in caught.value.faults] == ["no good", "no good"]


def test_estimate_is_that_of_the_cells_most_alike() -> None:
    estimate = Estimate(20.0)
    assert estimate.total([{"a": 1}, {"a": 2}]) == 40
    estimate.add({"a": 1, "b": 1}, 10)
    estimate.add({"a": 1, "b": 2}, 30)
    estimate.add({"a": 2, "b": 1}, 100)
    assert estimate.of({"a": 1, "b": 2}) == 30
    assert estimate.of({"a": 1, "b": 9}) == 20
    assert Estimate().total([{"a": 1}]) is None
    assert [duration_text(seconds) for seconds in (None, 5, 600, 9000)] == ["unknown", "5 s", "10 min", "2.5 h"]
