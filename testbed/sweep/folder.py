"""A sweep on disk: what was asked, a run folder for each run, and the tables made of them.

    results/<sweep>/
        sweep.json                      name, axes, cells with their ids, values and folders
        cells/<values>-<id>/run-1/ ...  run folders as `testbed run` leaves them
        results.csv  spread.csv         every row of every finished run; mean and spread over repetitions
        logs/                           what happened between the runs

A run is finished if its summary.json says how it ended and names no error, so a sweep that was killed at any moment can
go on. Whatever else is in a run's folder by then was cut off, and is removed before the run begins again.
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from testbed.errors import InputError
from testbed.record import Record
from testbed.results import RESULTS_FILE, Row, run_rows, spread, write_table
from testbed.run_folder import SUMMARY_FILE, is_finished, read_object
from testbed.sweep.cells import Cell, Sweep
from testbed.sweep.order import Run

__all__ = ["Description", "KnownCell", "SweepFolder", "finished_runs"]

DESCRIPTION_FILE = "sweep.json"
SPREAD_FILE = "spread.csv"


@dataclass(frozen=True)
class KnownCell:
    """What sweep.json says of a cell."""

    id: str
    folder: str
    """Relative to the sweep's."""
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Description:
    """What sweep.json says."""

    name: str
    axes: tuple[str, ...]
    cells: tuple[KnownCell, ...]
    num_cells: int
    """Those of all shards."""
    repeat: int
    shard: str | None = None
    show: tuple[str, ...] = ()

    @classmethod
    def of(cls, sweep: Sweep, cells: Sequence[Cell], *, repeat: int, shard: str | None) -> "Description":
        """Describe the part `cells` of a sweep."""
        known = tuple(KnownCell(cell.id, f"cells/{cell.folder_name}", dict(cell.values)) for cell in cells)
        return cls(sweep.name, sweep.axes, known, len(sweep.cells), repeat, shard, sweep.show)

    @classmethod
    def read(cls, folder: Path) -> "Description":
        """Read that of a sweep folder. Raises InputError if there is none."""
        try:
            raw = json.loads((folder / DESCRIPTION_FILE).read_text())
            cells = tuple(KnownCell(**cell) for cell in raw["cells"])
            return cls(**{**raw, "axes": tuple(raw["axes"]), "show": tuple(raw["show"]), "cells": cells})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError([f"{folder}: must be the folder of a sweep, got none ({error})"]) from error

    def write(self, folder: Path) -> None:
        """Write sweep.json in one step."""
        partial = folder / f"{DESCRIPTION_FILE}.partial"
        partial.write_text(json.dumps(asdict(self), indent=1) + "\n")
        partial.rename(folder / DESCRIPTION_FILE)


class SweepFolder:
    """The folder of a sweep that is being run."""

    def __init__(self, path: Path, description: Description):
        self.path = path
        self.description = description
        self._places = {cell.id: _place_of(path, cell) for cell in description.cells}
        self.durations_s: dict[tuple[str, int], float] = {}
        """Of every finished run."""
        self._rows: dict[tuple[str, int], list[Row]] = {}
        for cell, number, folder in finished_runs(path, description):
            self._take_in((cell.id, number), folder)

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, description: Description) -> Iterator["SweepFolder"]:
        """Make the folder, or take up the one that is there. Raises InputError if it is another's or in use."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            there = Description.read(path)
            if there.name != description.name:
                todo = f"it is of the sweep {there.name}: name another"
                raise InputError([f"--out: must be a new folder or one of this sweep, got '{path}'; {todo}"])
        try:
            (path / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError([f"--out: must be writable, got '{path}' ({error.strerror})"]) from error
        with (path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                todo = "wait for it, or name another folder"
                raise InputError([f"--out: must be in no other sweep's use, got '{path}'; {todo}"]) from None
            description.write(path)
            folder = cls(path, description)
            folder.write_tables()
            yield folder

    def record(self, run: Run) -> Record:
        """Make the record of a run; what an earlier attempt at it left is removed."""
        place = self._places[run.cell.id] / f"run-{run.number}"
        if place.exists():
            shutil.rmtree(place)
        return Record.create(name=run.cell.scenario.name, scenario=run.cell.scenario.dump(), out=place)

    def finish(self, run: Run, record: Record) -> None:
        """Take a finished run into the tables."""
        self._take_in(run.key, record.folder, run.cell.scenario.model_dump(mode="json", by_alias=True))
        self.write_tables()

    def spread(self) -> list[Row]:
        """Return mean and spread of all that has been measured; see `results.spread`."""
        return spread(self._all_rows(), self.description.axes)

    def write_tables(self) -> None:
        """Write results.csv and spread.csv of all finished runs."""
        for name, rows in ((RESULTS_FILE, self._all_rows()), (SPREAD_FILE, self.spread())):
            if rows:
                write_table(self.path / name, rows)
            else:
                (self.path / name).unlink(missing_ok=True)

    def _all_rows(self) -> list[Row]:
        order = {cell.id: place for place, cell in enumerate(self.description.cells)}
        keys = sorted(self._rows, key=lambda key: (order[key[0]], key[1]))
        return [row for key in keys for row in self._rows[key]]

    def _take_in(self, key: tuple[str, int], folder: Path, scenario: Mapping[str, Any] | None = None) -> None:
        place, axes = str(folder.relative_to(self.path)), self.description.axes
        self._rows[key] = run_rows(folder, scenario, axes=axes, cell=key[0], run=key[1], folder=place)
        self.durations_s[key] = float(read_object(folder / SUMMARY_FILE)["duration_s"])


def finished_runs(path: Path, description: Description) -> Iterator[tuple[KnownCell, int, Path]]:
    """Yield the finished runs of a sweep folder: cell, number, run folder."""
    for cell in description.cells:
        for number in range(1, description.repeat + 1):
            folder = _place_of(path, cell) / f"run-{number}"
            if _is_finished(folder):
                yield cell, number, folder


def _place_of(path: Path, cell: KnownCell) -> Path:
    """Find a cell's folder, which may bear the name of a time when the sweep had other axes."""
    there = sorted((path / "cells").glob(f"*-{cell.id}"))
    return there[0] if there else path / cell.folder


def _is_finished(folder: Path) -> bool:
    try:
        return is_finished(read_object(folder / SUMMARY_FILE))
    except (OSError, ValueError):
        return False
