"""The run folder: everything a run leaves behind, written as it goes.

    results/<name>-<utc>/
        scenario.yaml  manifest.json         what ran, and on what
        <table>.csv                          rows as the program reported them (requests, summary, calibration, …)
        links.csv  marks.csv                 counters of every link, at the end and at each mark of the program
        results.csv                          the summary with its setting, for `testbed.load_results`
        summary.json                         status, summary rows, expectations, error
        timeline.json                        Chrome trace merged over the devices
        logs/<device>.log  devices/<device>/ what each program printed, and the files it left

A run that was cut off stays readable: `summary.json` says `running`, `failed` or `interrupted` until it says `ok`.
"""

import contextlib
import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from testbed.errors import InputError, TestbedError

__all__ = ["Record", "Row", "Status", "describe_machine", "mark_interrupted"]

Row = dict[str, str | int | float | bool | None]
Status = Literal["running", "ok", "failed", "interrupted"]


class Record:
    """Writer of one run folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tables: dict[str, list[Row]] = {}
        self._columns: dict[str, list[str]] = {}
        self._started = time.time()
        self._traces: list[Any] = []

    @classmethod
    def create(cls, *, name: str, scenario: str, out: Path | None) -> "Record":
        """Make the folder: `out`, or a new one under `results/`. Raises InputError if `out` holds something."""
        if out is None:
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
            out = _free_folder(Path("results") / f"{name}-{stamp}")
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError([f"--out: must be a new or empty folder, got '{out}'; name another or remove it"])
        try:
            (out / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError([f"--out: must be writable, got '{out}' ({error.strerror})"]) from error
        record = cls(out)
        (out / "scenario.yaml").write_text(scenario)
        record.finish("running")
        return record

    def hand_over(self, uid: int | None, gid: int | None) -> None:
        """Give the folder and all in it to the user on whose behalf the run was; None leaves it."""
        if uid is not None:
            for path in [self.folder, *self.folder.rglob("*")]:
                os.chown(path, uid, -1 if gid is None else gid, follow_symlinks=False)

    def manifest(self, facts: Mapping[str, Any]) -> None:
        """Write what the run ran on."""
        _write_json(self.folder / "manifest.json", dict(facts))

    def row(self, table: str, row: Row) -> None:
        """Append a row to a table and to its file; a column that is new gets a place at the end."""
        rows = self.tables.setdefault(table, [])
        columns = self._columns.setdefault(table, [])
        rows.append(row)
        path = self.folder / f"{table}.csv"
        added = [name for name in row if name not in columns]
        columns.extend(added)
        with _writing(path), path.open("w" if added else "a", newline="") as file:
            writer = csv.DictWriter(file, columns)
            if added:
                writer.writeheader()
                writer.writerows(rows)
            else:
                writer.writerow(row)

    def log(self, device: str, line: str) -> None:
        """Append a line to a device's log."""
        path = self.folder / "logs" / f"{device}.log"
        with _writing(path), path.open("a") as file:
            file.write(line + "\n")

    def file(self, device: str, path: str, data: bytes) -> None:
        """Append a piece of a file that a program left. A path that leaves the device's folder is a TestbedError."""
        root = (self.folder / "devices" / device).resolve()
        target = (root / path).resolve()
        if not target.is_relative_to(root):
            raise TestbedError(f"device {device}: file name must stay inside its folder, got {path!r}")
        with _writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab") as file:
                file.write(data)

    def merge_timelines(self) -> None:
        """Join the devices' `timeline.json` files (Chrome trace) into one."""
        events: list[Any] = []
        for path in sorted((self.folder / "devices").glob("*/timeline.json")):
            try:
                events.extend(json.loads(path.read_text())["traceEvents"])
            except (ValueError, KeyError, TypeError) as error:
                self.log("testbed", f"{path.name} of {path.parent.name} is no Chrome trace: {error!r}")
        if events:
            _write_json(self.folder / "timeline.json", {"traceEvents": events}, indent=None)

    def finish(
        self, status: Status, *, expectations: Sequence[Mapping[str, Any]] = (), error: str | None = None
    ) -> None:
        """Write `summary.json`."""
        summary = {
            "status": status,
            "started_utc": datetime.fromtimestamp(self._started, UTC).isoformat(timespec="seconds"),
            "duration_s": round(time.time() - self._started, 3),
            "error": error,
            "expectations": list(expectations),
            "rows": self.tables.get("summary", []),
        }
        _write_json(self.folder / "summary.json", summary)


def mark_interrupted(folder: Path) -> None:
    """Mark a run folder whose controller was killed; one that says how it ended, or is gone, stays as it is."""
    path = folder / "summary.json"
    with contextlib.suppress(OSError, ValueError):
        summary = json.loads(path.read_text())
        if summary["status"] == "running":
            _write_json(path, {**summary, "status": "interrupted", "error": "the controller was killed"})


def describe_machine() -> dict[str, Any]:
    """Say what a figure measured here depends on: versions, kernel, processor, memory, git revision."""
    names = ("astra-testbed", "torch", "transformers", "numpy", "pyzmq")
    return {
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names},
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "git_revision": _git_revision(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except ModuleNotFoundError:
        return None


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return described.stdout.strip() or None


def _free_folder(wanted: Path) -> Path:
    folder, number = wanted, 2
    while folder.exists():
        folder, number = wanted.with_name(f"{wanted.name}-{number}"), number + 1
    return folder


def _write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    partial = path.with_name(path.name + ".partial")
    with _writing(path):
        partial.write_text(json.dumps(content, indent=indent) + "\n")
        partial.rename(path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say what could not be written, and that the run ends for want of its record."""
    try:
        yield
    except OSError as error:
        raise TestbedError(
            f"{path}: the run folder must stay writable, got {error.strerror!r}; what came after that is lost"
        ) from error
