"""Files of a run folder are read whole or not at all."""

from pathlib import Path

import pytest

from testbed.errors import InputError
from testbed.run_folder import is_finished, read_object, read_rows


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_object_is_read_from_json_and_from_yaml(tmp_path: Path) -> None:
    assert read_object(written(tmp_path / "summary.json", '{"status": "ok"}')) == {"status": "ok"}
    assert read_object(written(tmp_path / "scenario.yaml", "name: x\nseed: 3\n")) == {"name": "x", "seed": 3}


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("summary.json", '{"status": "o', ValueError),
        ("summary.json", "[1]", ValueError),
        ("scenario.yaml", "- 1\n", InputError),
    ],
    ids=["cut off", "a list", "a list in YAML"],
)
def test_file_that_holds_no_object_is_refused(tmp_path: Path, name: str, text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        read_object(written(tmp_path / name, text))


def test_file_that_is_not_there_is_no_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "summary.json")
    with pytest.raises(FileNotFoundError):
        read_rows(tmp_path / "links.csv")


def test_rows_have_every_column_also_where_one_was_cut_off(tmp_path: Path) -> None:
    table = written(tmp_path / "links.csv", "a,b\n1,2\n3\n4,5,6\n")
    assert read_rows(table) == [{"a": "1", "b": "2"}, {"a": "3", "b": ""}, {"a": "4", "b": "5"}]


@pytest.mark.parametrize(
    ("summary", "finished"),
    [
        ({"status": "ok", "error": None}, True),
        ({"status": "failed", "error": None}, True),
        ({"status": "failed", "error": "device d1: gone"}, False),
        ({"status": "interrupted", "error": None}, False),
        ({}, False),
    ],
    ids=["ok", "not as expected", "broke off", "interrupted", "says nothing"],
)
def test_run_is_finished_if_it_came_to_its_end(summary: dict[str, object], finished: bool) -> None:
    assert is_finished(summary) is finished
