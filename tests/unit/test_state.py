"""The on-disk trace of runs."""

import os
import subprocess
from pathlib import Path

import pytest

from testbed.runtimes.state import ProcessId, RunState, new_run_id, state_folder


@pytest.fixture(autouse=True)
def own_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESTBED_STATE_DIR", str(tmp_path / "states"))
    return tmp_path / "states"


def make_state(controller: ProcessId, **changes: object) -> RunState:
    state = RunState(run_id=new_run_id(), name="x", runtime="netns", devices=("d0",), controller=controller)
    state.save()
    return state.with_changes(**changes) if changes else state


def test_state_survives_the_disk() -> None:
    own = ProcessId.of(os.getpid())
    state = make_state(own, held=True, agents={"d0": own}, addresses={"d0": "10.77.0.1"})
    assert RunState.load_all() == [state]


def test_state_of_a_dead_controller_is_abandoned() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        state = make_state(ProcessId.of(process.pid))
        assert not state.abandoned()
        process.kill()
        process.wait()
        assert state.abandoned()
        assert not state.with_changes(held=True).abandoned()


def test_process_id_is_not_fooled_by_a_reused_number() -> None:
    own = ProcessId.of(os.getpid())
    assert own.alive()
    assert not ProcessId(own.pid, own.start_ticks - 1).alive()


def test_damaged_state_is_that_of_an_abandoned_run(own_state_folder: Path) -> None:
    (own_state_folder / "broken").mkdir(parents=True)
    (own_state_folder / "broken" / "state.json").write_text("{")
    (damaged,) = RunState.load_all()
    assert (damaged.run_id, damaged.abandoned()) == ("broken", True)
    damaged.forget()
    assert RunState.load_all() == []


def test_state_of_another_version_is_left_alone(own_state_folder: Path) -> None:
    (own_state_folder / "newer").mkdir(parents=True)
    (own_state_folder / "newer" / "state.json").write_text('{"format": 9}')
    assert RunState.load_all() == []


def test_state_folder_is_per_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TESTBED_STATE_DIR")
    monkeypatch.setattr("os.geteuid", lambda: 1234)
    assert state_folder().name == "testbed-1234"
