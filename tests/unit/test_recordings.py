"""Recordings that a scenario names by file: read into it, relative to the file that names them, or refused."""

from pathlib import Path

import pytest
from pydantic_core import PydanticCustomError

from testbed.errors import InputError
from testbed.loss import PATTERN_LENGTH, GilbertElliott, Recorded
from testbed.recordings import pattern_of
from testbed.scenario import load

BASE = "name: a\ndevices: {count: 3}\nworkload: {command: [run]}\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("0010", "0010"),
        ("# a remark\n00 1\n\n0 # lost once\n", "0010"),
        ("cycle 4\n2\n", "0010"),
        ("cycle 5 # packets\n4 0 4", "10001"),
        ("cycle 3", "000"),
        ("1" * PATTERN_LENGTH, "1" * PATTERN_LENGTH),
    ],
)
def test_pattern_of_reads_flags_and_positions(text: str, pattern: str) -> None:
    assert pattern_of(text) == pattern


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a file of 0 and 1"),
        ("# nothing\n", "a file of 0 and 1"),
        ("0 1 2", "a file of 0 and 1"),
        ("0" * (PATTERN_LENGTH + 1), "at most 65536 packets"),
        ("cycle", "whole numbers after"),
        ("cycle 10 -1", "whole numbers after"),
        ("cycle 10 1.5", "whole numbers after"),
        ("cycle 0", "1 to 65536 packets"),
        ("cycle 65537", "1 to 65536 packets"),
        ("cycle 10 3 10", "below its cycle, 10"),
    ],
)
def test_pattern_of_refuses_what_is_no_recording(text: str, said: str) -> None:
    with pytest.raises(PydanticCustomError) as caught:
        pattern_of(text)
    assert caught.value.context is not None
    assert said in caught.value.context["rule"]


def test_recording_is_relative_to_the_file_that_names_it_and_dumped_whole(tmp_path: Path) -> None:
    write(tmp_path / "base" / "losses.txt", "0010")
    write(tmp_path / "base" / "base.yaml", BASE + "links: {default: {loss: {model: recorded, file: losses.txt}}}")
    top = write(tmp_path / "top.yaml", "extends: base/base.yaml\nseed: 3")
    scenario = load(top)
    settings = scenario.links.settings("d0", "d1")
    assert settings.loss_model() == Recorded("0010")
    assert (settings.loss_pct, settings.columns()["loss"]) == (25.0, "recorded")
    elsewhere = write(tmp_path / "run" / "scenario.yaml", scenario.dump())
    assert load(elsewhere) == scenario


def test_every_direction_has_its_own_model(tmp_path: Path) -> None:
    links = """
links:
  default: {loss_pct: 2}
  overrides:
    - {between: [d0, d1], loss: {model: gilbert_elliott, enter_pct: 1, leave_pct: 30, bad_loss_pct: 80}}
    - {from: d1, to: d0, loss_pct: 5}
    - {from: d2, to: d0, loss: {model: recorded, pattern: "01"}}
"""
    scenario = load(write(tmp_path / "a.yaml", BASE + links))
    forward = scenario.links.settings("d0", "d1")
    assert forward.loss_model() == GilbertElliott(enter=0.01, leave=0.3, bad_loss=0.8)
    assert forward.loss_pct == pytest.approx(100 * 0.01 / 0.31 * 0.8)
    back = scenario.links.settings("d1", "d0")
    assert (back.loss, back.loss_pct) == (None, 5)
    assert scenario.links.settings("d2", "d0").loss_model() == Recorded("01")
    assert scenario.links.settings("d0", "d2").loss_pct == 2
    assert load(write(tmp_path / "again.yaml", scenario.dump())) == scenario


def test_loss_that_a_later_model_contradicts_is_a_fault(tmp_path: Path) -> None:
    links = """
links:
  overrides:
    - {from: d0, to: d1, loss_pct: 50}
    - {from: d0, to: d1, loss: {model: recorded, pattern: "01"}}
"""
    with pytest.raises(InputError) as caught:
        load(write(tmp_path / "a.yaml", BASE + links))
    (fault,) = caught.value.faults
    assert "links.overrides[0].loss_pct must be in effect on some link, got 50" in fault


def test_files_that_cannot_be_read_are_faults_beside_the_others(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    links = """
links:
  overrides:
    - {from: d0, to: d1, loss: {model: recorded, file: none.txt}}
    - {from: d1, to: d0, loss: {model: recorded, file: binary}}
    - {from: d2, to: d0, loss: {model: recorded, file: .}}
seed: -1
"""
    path = write(tmp_path / "a.yaml", BASE + links)
    with pytest.raises(InputError) as caught:
        load(path)
    missing, binary, folder, seed = caught.value.faults
    place = f"{path}: links.overrides"
    assert missing == (
        f"{place}[0].loss.file must be a file that can be read, got 'none.txt'; "
        f"{tmp_path / 'none.txt'}: No such file or directory; paths are relative to the scenario file"
    )
    assert binary == f"{place}[1].loss.file must be a text file, got 'binary'; {tmp_path / 'binary'} is not UTF-8"
    assert folder.startswith(f"{place}[2].loss.file must be a file that can be read, got '.'")
    assert seed.startswith(f"{path}: seed must be")
