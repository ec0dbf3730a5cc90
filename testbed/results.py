"""Results as one tidy table: a row for each row of a run's summary, with the setting that it was measured in.

    run folder   --run_rows-->  rows ──┐
    sweep folder (a run folder a cell) ┴─ results.csv --load--> pandas.DataFrame

    | cell run scenario status … | seed devices.count links.default.rate_mbps … | a sweep's axes | the summary's |

The setting's columns are the same for single runs and sweeps, named as in the YAML, so that tables of both may be
joined. A column of the summary that has one of these names is called `summary.<name>`. Does not know what was measured.
"""

import csv
import statistics
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.errors import InputError
from testbed.run_folder import SCENARIO_FILE, SUMMARY_FILE, read_object
from testbed.value_at import as_cell, value_at

if TYPE_CHECKING:
    import pandas

__all__ = ["MEASURES", "OWN", "RESULTS_FILE", "SETTING", "Row", "load", "run_rows", "spread", "write_table"]

Value = str | int | float | bool | None
Row = dict[str, Value]

RESULTS_FILE = "results.csv"
OWN = ("cell", "run", "scenario", "status", "started_utc", "duration_s", "folder")
"""Which run a row is of; `cell` is empty for single runs, `folder` is relative to the table."""
SETTING = (
    "seed",
    "devices.count",
    "devices.cpus",
    "devices.memory_mb",
    "links.default.rate_mbps",
    "links.default.delay_ms",
    "links.default.jitter_ms",
    "links.default.loss_pct",
    "links.default.queue_ms",
)
"""What is said of every run, whether or not a sweep varies it."""
MEASURES = ("metric", "runs", "mean", "std", "min", "max")
"""Columns of a table of spreads, besides those that say of what."""


def load(path: Path | str) -> "pandas.DataFrame":
    """Read the results of a sweep folder, of a run folder, or a results.csv as a `pandas.DataFrame`.

    Raises InputError if there are none, and ImportError without pandas.
    """
    import pandas

    place = Path(path)
    table = place / RESULTS_FILE if place.is_dir() else place
    if table.is_file():
        return pandas.read_csv(table, keep_default_na=False, na_values=[""])
    if (place / SUMMARY_FILE).is_file():
        return pandas.DataFrame(run_rows(place))
    raise InputError(
        [f"load_results: must be given a folder of results, got '{path}'; testbed run and sweep make them"]
    )


def run_rows(
    folder: Path, scenario: Mapping[str, Any] | None = None, /, *, axes: Sequence[str] = (), **about: Value
) -> list[Row]:
    """Return the tidy rows of a run folder, `scenario` being what its scenario.yaml says, if that is known already.

    `axes` are paths into the scenario that get a column too; `about` says what columns of OWN hold. Raises InputError
    for what is no run folder.
    """
    try:
        summary = read_object(folder / SUMMARY_FILE)
        tree = read_object(folder / SCENARIO_FILE) if scenario is None else scenario
        said = {name: summary[name] for name in ("status", "started_utc", "duration_s")}
        return [_row_of(tree, {"folder": ".", **said, **about}, row, axes) for row in summary["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError([f"{folder}: must be the folder of a run, got none ({error})"]) from error


def _row_of(
    scenario: Mapping[str, Any], about: Mapping[str, Value], row: Mapping[str, Value], axes: Sequence[str]
) -> Row:
    names = dict.fromkeys([*SETTING, *axes])
    tidy: Row = {**dict.fromkeys(OWN), "run": 1, "scenario": scenario.get("name"), **about}
    tidy |= {path: _cell_of(scenario, path) for path in names}
    taken = frozenset(tidy)
    return tidy | {f"summary.{name}" if name in taken else name: value for name, value in row.items()}


def spread(rows: Sequence[Row], axes: Sequence[str] = ()) -> list[Row]:
    """Return mean, sample standard deviation and range over repeated runs: a row for each cell, row and measurement.

    Rows belong together that have the same place in the runs of a cell: equal texts, and the same number among such.
    """
    settings = list(dict.fromkeys([*SETTING, *axes]))
    groups: dict[Hashable, list[Row]] = {}
    seen: Counter[Hashable] = Counter()
    for row in rows:
        key = (row["cell"], tuple(_texts(row, settings).items()))
        seen[key, row["run"]] += 1
        groups.setdefault((key, seen[key, row["run"]]), []).append(row)
    return [measured for group in groups.values() for measured in _spread_of(group, settings)]


def write_table(path: Path, rows: Iterable[Mapping[str, Value]]) -> None:
    """Write rows as CSV, in one step; columns in order of appearance."""
    known = list(rows)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in known for name in row)))
        writer.writeheader()
        writer.writerows(known)
    partial.rename(path)


def _texts(row: Row, settings: Sequence[str]) -> dict[str, Any]:
    """Return what names a row: its texts, but for digests and for what is said of the run."""
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, str) and name not in (*OWN, *settings) and not name.endswith("_digest")
    }


def _spread_of(group: list[Row], settings: Sequence[str]) -> list[Row]:
    first = group[0]
    names = {name: first.get(name) for name in ("cell", "scenario", *settings)} | _texts(first, settings)
    metrics = dict.fromkeys(name for row in group for name in row if name not in names and name not in OWN)
    found = []
    for metric in metrics:
        values = [row[metric] for row in group if _is_number(row.get(metric))]
        numbers = [float(value) for value in values if value is not None]
        if numbers:
            deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
            measures = (metric, len(numbers), statistics.fmean(numbers), deviation, min(numbers), max(numbers))
            found.append({**names, **dict(zip(MEASURES, measures, strict=True))})
    return found


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell_of(scenario: Mapping[str, Any], path: str) -> Value:
    """Return what a scenario says at a path, as a cell of a table; None where nothing."""
    return as_cell(value_at(scenario, path))
