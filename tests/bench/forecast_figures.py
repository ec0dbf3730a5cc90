"""How far predicted latencies are from measured ones, in a run folder or a sweep's.

    python tests/bench/forecast_figures.py results/vit-rates

    FOLDER/**/{summary,predictions}.csv ──> a line for each strategy of each run, then how many are within 15 %

Runs predict where their scenario says `predict: true`; others are left out. The parts beside an error say where to
look.
Not a test: judges nothing.
"""

import csv
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

WITHIN = 0.15
PARTS = {"compute_s": "compute", "encode_s": "encode", "network_s": "network", "round_trips_s": "round trips"}


@dataclass(frozen=True)
class Compared:
    """One strategy of one run."""

    run: str
    strategy: str
    measured_s: float
    predicted_s: float
    parts_s: tuple[float, ...]

    @property
    def error(self) -> float:
        """How much more was predicted than measured, as a share of that."""
        return self.predicted_s / self.measured_s - 1


def compared(folder: Path) -> list[Compared]:
    """Return every strategy that has both, run by run."""
    return [each for path in sorted(folder.rglob("summary.csv"), key=_by_number) for each in _of_run(path, folder)]


def main(folder: Path) -> None:
    """Print the comparison."""
    found = compared(folder)
    if not found:
        sys.exit(f"{folder}: a summary.csv with latency_predicted_s must be below it, got none; name a run or a sweep")
    run = None
    for each in found:
        if each.run != run:
            run = each.run
            print(f"\n{run:<42} measured  predicted    error   {'  '.join(PARTS.values())}")  # noqa: T201 - a program
        parts = "  ".join(f"{value:{len(name)}.3f}" for value, name in zip(each.parts_s, PARTS.values(), strict=False))
        times = f"{each.measured_s:8.3f} s {each.predicted_s:8.3f} s {100 * each.error:+6.1f} %"
        print(f"  {each.strategy:<40} {times}   {parts}")  # noqa: T201
    errors = [each.error for each in found]
    near = sum(abs(error) <= WITHIN for error in errors)
    spread = f"{100 * min(errors):+.1f} to {100 * max(errors):+.1f} %, median {100 * statistics.median(errors):+.1f} %"
    print(f"\n{near} of {len(errors)} within {WITHIN:.0%}; {spread}")  # noqa: T201


def _of_run(path: Path, folder: Path) -> list[Compared]:
    run = str(path.parent.relative_to(folder)).removeprefix("cells/")
    parts = {
        (row["strategy"], row["settings"]): tuple(float(row[name]) for name in PARTS)
        for row in _rows(path.with_name("predictions.csv"))
    }
    found = []
    for row in _rows(path):
        if row.get("latency_predicted_s"):
            times = float(row["latency_p50_s"]), float(row["latency_predicted_s"])
            name = row["strategy"], row["settings"]
            found.append(Compared(run if run != "." else folder.name, " ".join(name), *times, parts.get(name, ())))
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _by_number(path: Path) -> list[str | int]:
    """Sort 50 before 100."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
