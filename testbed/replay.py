"""What differs between two runs of one scenario that should not. Pure but for reading the run folders.

    run folder, run folder --differences--> lines: packet positions, codes and answers that are not the same

Every table that the program reported is compared row for row, in whatever order the rows came: cells that are not
numbers, and those of columns that end in `_digest`, have to be equal. Numbers (times, counts) may differ. Of every
link, the pattern has to be the same and to have lost in each run what it says.

What is sent with a deadline is a matter of time, and what is missing decides what comes of it. A row that says what it
had to do without, in a column `missing_digest`, is held against the row of the other run that says the same; where no
row does, other things were missing, and there is nothing to compare: `not_compared` says of how many.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from testbed.errors import InputError
from testbed.run_folder import MANIFEST_FILE, SUMMARY_FILE, is_finished, read_object, read_rows

__all__ = ["differences", "finished_run", "not_compared"]

OWN_TABLES = frozenset({"links", "marks", "events", "calibration", "traces", "results"})
"""Written by testbed; of these only `links` says what has to be the same."""
SHOWN_ROWS = 5
LACKED = "missing_digest"
"""Column of what a row had to do without."""

Cells = tuple[tuple[str, str], ...]


def finished_run(folder: Path) -> dict[str, object]:
    """Return the options of a run that came to its end, its expectations met or not. Raises InputError for others."""
    try:
        summary = read_object(folder / SUMMARY_FILE)
        status = summary["status"]
        options = read_object(folder / MANIFEST_FILE)["options"]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise InputError([f"RUN_DIR: must be the folder of a run, got '{folder}' ({fault})"]) from fault
    if not is_finished(summary):
        raise InputError([f"RUN_DIR: must be a finished run, got '{folder}', which is {status}"])
    return dict(options)


def differences(first: Path, second: Path) -> list[str]:
    """Say in a line each what is not the same in two run folders; nothing if all of it is."""
    return [*_of_links(first, second), *_of_tables(first, second)]


def _of_links(first: Path, second: Path) -> Iterator[str]:
    links = [
        {(row["source"], row["destination"]): row for row in _rows(folder / "links.csv")} for folder in (first, second)
    ]
    for ends in links[0].keys() | links[1].keys():
        name, rows = "→".join(ends), [found.get(ends) for found in links]
        if None in rows:
            yield f"link {name}: must be in both runs, got it in one; the other lost its device"
            continue
        patterns = {row.get("pattern_digest") for row in rows if row}
        if len(patterns) > 1:
            yield f"link {name}: pattern must be the same, got {' and '.join(map(str, sorted(patterns, key=str)))}"
        for row, folder in zip(rows, (first, second), strict=True):
            if row and row.get("lost_by_pattern") and row["lost"] != row["lost_by_pattern"]:
                said = f"of {row['packets']} packets must lose {row['lost_by_pattern']}, got {row['lost']}"
                yield f"link {name}: {said} in {folder}"


def _of_tables(first: Path, second: Path) -> Iterator[str]:
    for name in _tables(first, second):
        found = [Counter(map(_fixed_cells, rows)) for rows in _comparable(first, second, name)]
        for folder, only in ((first, found[0] - found[1]), (second, found[1] - found[0])):
            for cells in list(only)[:SHOWN_ROWS]:
                yield f"{name}: must have the same rows, got only in {folder}: {dict(cells)}"
            if len(only) > SHOWN_ROWS:
                yield f"{name}: and {len(only) - SHOWN_ROWS} more only in {folder}"


def not_compared(first: Path, second: Path) -> list[str]:
    """Say in a line each how many rows of a table lacked other things than in the first run."""
    lines = []
    for name in _tables(first, second):
        rows = _rows(second / f"{name}.csv")
        left_out = len(rows) - len(_comparable(first, second, name)[1])
        if left_out:
            lines.append(f"{name}: {left_out} of {len(rows)} rows had to do without other things than in the first run")
    return lines


def _tables(first: Path, second: Path) -> list[str]:
    return sorted({path.stem for folder in (first, second) for path in folder.glob("*.csv")} - OWN_TABLES)


def _comparable(first: Path, second: Path, name: str) -> list[list[dict[str, str]]]:
    """Return the rows of both runs but for those that lacked what no row of the other run lacked."""
    tables = [_rows(folder / f"{name}.csv") for folder in (first, second)]
    lacked = [{row.get(LACKED) for row in rows} for rows in tables]
    common = lacked[0] & lacked[1]
    return [[row for row in rows if not row.get(LACKED) or row[LACKED] in common] for rows in tables]


def _fixed_cells(row: dict[str, str]) -> Cells:
    """Return the cells that no two runs may differ in."""
    return tuple((name, cell) for name, cell in sorted(row.items()) if name.endswith("_digest") or not _is_number(cell))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _rows(path: Path) -> list[dict[str, str]]:
    return read_rows(path) if path.exists() else []
