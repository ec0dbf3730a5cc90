"""The run folder: readable at any moment, and nothing outside it is touched."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from testbed.errors import InputError, TestbedError
from testbed.record import Record, mark_interrupted


def make(folder: Path) -> Record:
    return Record.create(name="x", scenario="name: x\n", out=folder / "run")


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_record_says_running_from_the_start(tmp_path: Path) -> None:
    record = make(tmp_path)
    assert json.loads((record.folder / "summary.json").read_text())["status"] == "running"
    assert (record.folder / "scenario.yaml").read_text() == "name: x\n"


def test_record_rows_are_on_disk_at_once(tmp_path: Path) -> None:
    record = make(tmp_path)
    record.row("requests", {"strategy": "single", "latency_s": 1.5})
    assert read(record.folder / "requests.csv") == [{"strategy": "single", "latency_s": "1.5"}]


def test_record_row_with_new_column_keeps_earlier_rows(tmp_path: Path) -> None:
    record = make(tmp_path)
    record.row("requests", {"a": 1})
    record.row("requests", {"a": 2, "b": "x,y"})
    record.row("requests", {"b": "z"})
    expected = [{"a": "1", "b": ""}, {"a": "2", "b": "x,y"}, {"a": "", "b": "z"}]
    assert read(record.folder / "requests.csv") == expected


def test_record_refuses_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("1")
    with pytest.raises(InputError, match="--out: must be a new or empty folder"):
        make(tmp_path)
    assert (tmp_path / "run" / "precious").read_text() == "1"


def test_record_names_runs_of_the_same_second_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {Record.create(name="x", scenario="", out=None).folder for _ in range(3)}
    assert len(folders) == 3


def test_record_file_is_appended_in_pieces(tmp_path: Path) -> None:
    record = make(tmp_path)
    record.file("d0", "a/b.bin", b"1")
    record.file("d0", "a/b.bin", b"2")
    assert (record.folder / "devices" / "d0" / "a" / "b.bin").read_bytes() == b"12"


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil"])
def test_record_file_never_leaves_the_folder(tmp_path: Path, path: str) -> None:
    record = make(tmp_path)
    with pytest.raises(TestbedError, match="must stay inside its folder"):
        record.file("d0", path, b"1")


def test_record_merges_timelines_and_survives_a_broken_one(tmp_path: Path) -> None:
    record = make(tmp_path)
    for device, content in {"d0": '{"traceEvents": [1]}', "d1": '{"traceEvents": [2]}', "d2": "{"}.items():
        record.file(device, "timeline.json", content.encode())
    record.merge_timelines()
    assert json.loads((record.folder / "timeline.json").read_text()) == {"traceEvents": [1, 2]}
    assert "d2 is no Chrome trace" in (record.folder / "logs" / "testbed.log").read_text()


def test_record_finish_keeps_rows_and_error(tmp_path: Path) -> None:
    record = make(tmp_path)
    record.row("summary", {"strategy": "single"})
    record.finish("failed", error="device d1: …")
    summary = json.loads((record.folder / "summary.json").read_text())
    assert (summary["status"], summary["error"], summary["rows"]) == (
        "failed",
        "device d1: …",
        [{"strategy": "single"}],
    )


def test_record_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    record = make(tmp_path)
    shutil.rmtree(record.folder)
    for write in (
        lambda: record.row("summary", {"a": 1}),
        lambda: record.log("d0", "x"),
        lambda: record.finish("ok"),
        lambda: record.manifest({}),
    ):
        with pytest.raises(TestbedError, match="the run folder must stay writable"):
            write()


def test_record_of_a_killed_controller_is_marked(tmp_path: Path) -> None:
    record = make(tmp_path)
    mark_interrupted(record.folder)
    assert json.loads((record.folder / "summary.json").read_text())["status"] == "interrupted"
    record.finish("ok")
    mark_interrupted(record.folder)
    assert json.loads((record.folder / "summary.json").read_text())["status"] == "ok"
    mark_interrupted(tmp_path / "gone")
