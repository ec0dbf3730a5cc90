"""Run folders as they lie on disk, whole or cut off.

    folder --run_folder, file by file--> RunFolder: typed rows, summary, manifest, scenario, and reasons for the rest

Lenient where `run_folder` is strict: a run that was killed leaves few files, and its report says which.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.errors import InputError
from testbed.record import Row
from testbed.run_folder import MANIFEST_FILE, SCENARIO_FILE, SUMMARY_FILE, is_finished, read_object, read_rows

__all__ = ["RunFolder", "find_runs"]

Value = str | int | float | bool | None

_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_MARKS_OF_A_RUN = (SUMMARY_FILE, SCENARIO_FILE)
_DEEPEST = 4
"""Folders between that of a sweep and that of a run."""
_USUAL_REASONS = {
    "calibration": "the links were not measured before the run (--no-calibrate)",
    "events": "the scenario has no events, or none has happened",
    "traces": "no link followed a recording",
    "requests": "the program reported no requests",
    "summary": "the program reported no summary",
    "links": "no counters were read",
    "timeline": "the program left no trace",
}


@dataclass(frozen=True)
class RunFolder:
    """One run folder."""

    path: Path
    tables: Mapping[str, list[Row]]
    """Rows of every `<table>.csv`, typed."""
    summary: Mapping[str, Any]
    manifest: Mapping[str, Any]
    scenario: Mapping[str, Any]
    """The resolved scenario; empty, as the others, where there is none."""
    unreadable: Mapping[str, str]
    """Files that are there but cannot be read, and why."""

    @classmethod
    def read(cls, path: Path) -> "RunFolder":
        """Read a folder."""
        unreadable: dict[str, str] = {}
        tables = {}
        for file in sorted(path.glob("*.csv")):
            try:
                rows = _rows(file)
            except (OSError, ValueError, csv.Error) as error:
                unreadable[file.name] = str(error)
            else:
                tables.update({file.stem: rows} if rows else {})
        return cls(
            path,
            tables,
            summary=_object(path / SUMMARY_FILE, unreadable),
            manifest=_object(path / MANIFEST_FILE, unreadable),
            scenario=_object(path / SCENARIO_FILE, unreadable),
            unreadable=unreadable,
        )

    @property
    def name(self) -> str:
        """The scenario's name, or else the folder's."""
        return str(self.scenario.get("name") or self.path.resolve().name)

    @property
    def status(self) -> str:
        """How the run ended, as far as the folder knows."""
        return str(self.summary.get("status", "unknown"))

    def rows(self, table: str) -> list[Row]:
        """Return a table's rows; none if there is no such table."""
        return self.tables.get(table, [])

    def why_missing(self, file: str) -> str:
        """Say in a sentence why a file's content cannot be shown."""
        if file in self.unreadable:
            return f"{file} cannot be read: {self.unreadable[file]}."
        if is_finished(self.summary):
            reason = _USUAL_REASONS.get(file.partition(".")[0], "the run did not write it")
        else:
            reason = f"the run is marked {self.status} and may have ended before it was written"
        return f"{file} is missing: {reason}."


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in a folder, itself included. Raises InputError if there is none."""
    if not folder.is_dir():
        raise InputError([f"DIR: must be the folder of a run or a sweep, got '{folder}', which is no folder"])
    if any((folder / name).exists() for name in _MARKS_OF_A_RUN):
        return [folder]
    patterns = ("/".join([*["*"] * depth, _MARKS_OF_A_RUN[0]]) for depth in range(1, _DEEPEST + 1))
    candidates = sorted({path.parent for pattern in patterns for path in folder.glob(pattern)})
    found = [place for place in candidates if all((place / name).exists() for name in _MARKS_OF_A_RUN)]
    if not found:
        todo = "name one that testbed run or testbed sweep wrote"
        raise InputError([f"DIR: must be the folder of a run or a sweep, got '{folder}' without summary.json; {todo}"])
    return found


def _object(path: Path, unreadable: dict[str, str]) -> dict[str, Any]:
    """Read an object; nothing if there is none, and the reason in `unreadable` if it is there and broken."""
    try:
        return read_object(path) if path.exists() else {}
    except (OSError, ValueError, InputError) as error:
        unreadable[path.name] = str(error)
        return {}


def _rows(path: Path) -> list[Row]:
    return [{name: _typed(name, text) for name, text in row.items()} for row in read_rows(path)]


def _typed(name: str, text: str) -> Value:
    """Undo what `csv` did to a value; None for what is not there."""
    if not text:
        return None
    if text in ("True", "False"):
        return text == "True"
    if name.endswith("_digest") or not _NUMBER.fullmatch(text):
        return text
    return float(text) if set(text) & set(".eE") else int(text)
