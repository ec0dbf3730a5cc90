"""`testbed sweep` as far as nothing is run: what it will do, how it is called, what it refuses."""

import sys
from pathlib import Path

import pytest
from sweep_worlds import FakeStage, go, make_sweep
from typer.testing import CliRunner

from testbed.cli import app
from testbed.errors import InputError


def sweep(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["sweep", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_sweep(tmp_path, cell_s=100)
    return tmp_path / "sweep.yaml"


@pytest.mark.parametrize(
    "words", [["sweep.yaml", "--dry-run"], ["--dry-run", "sweep.yaml"], ["run", "sweep.yaml", "--dry-run"]]
)
def test_dry_run_shows_cells_and_what_they_take(file: Path, words: list[str]) -> None:
    said = sweep(*words)
    assert "count=2, rate_mbps=10" in said
    assert "4 of 4 cells, 4 runs left; devices are made 2 times, programs started 2 times at least" in said
    assert "about 7 min, without making devices" in said
    assert not (file.parent / "results").exists()


def test_dry_run_counts_repetitions_shards_and_what_is_finished(file: Path) -> None:
    go(make_sweep(file.parent), file.parent / "results" / "s", FakeStage())
    said = sweep(file, "--dry-run", "--repeat", "2")
    assert "4 of 4 cells, 4 runs left" in said
    assert "1 of 2" in said
    assert "2 of 4 cells, 2 runs left" in sweep(file, "--dry-run", "--shard", "2/2")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--shard", "3/2"], "--shard: must be I/N with I from 1 to N, got '3/2'"),
        (["--shard", "x"], "--shard: must be I/N"),
        (["--runtime", "compose"], "--runtime: must be one of netns, docker for a sweep, got 'compose'"),
    ],
)
def test_options_that_cannot_be_are_refused(file: Path, options: list[str], fault: str) -> None:
    with pytest.raises(InputError) as caught:
        sweep(file, *options)
    assert fault in str(caught.value)


def test_merge_says_what_is_missing(file: Path) -> None:
    go(make_sweep(file.parent), file.parent / "one", FakeStage(), part=(1, 2))
    result = CliRunner().invoke(app, ["sweep", "merge", "one", "--out", "all"])
    assert result.exit_code == 1
    assert "2 of 4 cells, 2 runs missing" in result.output
    assert (file.parent / "all" / "results.csv").exists()
    assert f"report: {Path('all') / 'report.html'}" in result.output


def test_report_that_fails_costs_nothing_else(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go(make_sweep(file.parent), file.parent / "one", FakeStage())
    monkeypatch.setattr(sys, "executable", "false")
    result = CliRunner().invoke(app, ["sweep", "merge", "one", "--out", "all"])
    assert result.exit_code == 0
    assert "4 of 4 cells, 0 runs missing" in result.output
    assert "no report: exit code 1" in result.output


def test_validate_checks_every_cell_of_a_sweep(file: Path) -> None:
    assert "sweep.yaml: ok" in CliRunner().invoke(app, ["validate", str(file)]).output
    make_sweep(file.parent)
    file.write_text(file.read_text().replace("10", "0.01"))
    result = CliRunner().invoke(app, ["validate", str(file)])
    assert isinstance(result.exception, InputError)
    assert "links.default.rate_mbps must be a number from 0.1 to 10000 or null, got 0.01" in str(result.exception)
