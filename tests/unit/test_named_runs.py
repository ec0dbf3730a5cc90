"""Runs that are up are chosen by id or name, and one that is not up is named together with those that are."""

import os
from pathlib import Path

import pytest

from testbed import status
from testbed.errors import InputError
from testbed.runtimes.state import ProcessId, RunState


@pytest.fixture(autouse=True)
def two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_STATE_DIR", str(tmp_path / "states"))
    own = ProcessId.of(os.getpid())
    for run_id, name in (("aaa", "lab"), ("bbb", "field")):
        RunState(run_id=run_id, name=name, runtime="netns", devices=("d0",), controller=own).save()


@pytest.mark.parametrize(
    ("names", "chosen"), [((), ["aaa", "bbb"]), (("lab",), ["aaa"]), (("bbb", "lab"), ["aaa", "bbb"])]
)
def test_runs_are_chosen_by_id_or_name_and_all_without(names: tuple[str, ...], chosen: list[str]) -> None:
    assert [state.run_id for state in status.named_runs(names)] == chosen


def test_run_that_is_not_up_is_refused_before_any_is_chosen() -> None:
    with pytest.raises(InputError, match=r"RUN: must be a run that is up, got 'x'; up now: aaa \(lab\), bbb \(field\)"):
        status.named_runs(["lab", "x"])


def test_one_run_has_to_be_named_where_several_are_up() -> None:
    assert status.named_run("field").run_id == "bbb"
    with pytest.raises(InputError, match=r"--run: must name one run that is up, got None; up now: aaa \(lab\)"):
        status.named_run(None)
