"""A training's log: rows in `log.csv` as it goes, and a plot of them in `loss.png` at the end.

step,loss,commitment,learning_rate,seconds,metric,value       looks at the validation set fill the last two columns
"""

import csv
from pathlib import Path
from typing import Any

__all__ = ["LOG_FILE", "PLOT_FILE", "TrainingLog"]

LOG_FILE = "log.csv"
PLOT_FILE = "loss.png"
COLUMNS = ("step", "loss", "commitment", "learning_rate", "seconds", "metric", "value")

Row = dict[str, str]


class TrainingLog:
    """Appends to the log of one folder."""

    def __init__(self, folder: Path):
        self._folder = folder

    def step(self, step: int, loss: float, commitment: float, learning_rate: float, seconds: float) -> None:
        """Add what a step came to."""
        self._append(
            step=step,
            loss=f"{loss:.6g}",
            commitment=f"{commitment:.6g}",
            learning_rate=f"{learning_rate:.6g}",
            seconds=f"{seconds:.1f}",
        )

    def look(self, step: int, metric: str, value: float) -> None:
        """Add a look at the validation set."""
        self._append(step=step, metric=metric, value=repr(value))

    @property
    def last_look(self) -> tuple[str, float]:
        """Metric and value of the last look."""
        row = [row for row in self.rows() if row["metric"]][-1]
        return row["metric"], float(row["value"])

    def look_at(self, step: int) -> tuple[str, float]:
        """Metric and value of the look after `step`."""
        row = next(row for row in self.rows() if row["metric"] and int(row["step"]) == step)
        return row["metric"], float(row["value"])

    def rows(self) -> list[Row]:
        """Read all rows."""
        path = self._folder / LOG_FILE
        if not path.exists():
            return []
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def cut_after(self, step: int) -> None:
        """Drop what was logged after the state that a training goes on from."""
        kept = [row for row in self.rows() if row["step"] and int(row["step"]) <= step]
        with (self._folder / LOG_FILE).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)

    def plot(self) -> None:
        """Draw loss and metric against steps."""
        from matplotlib.figure import Figure  # slow to import, and only needed once

        rows = self.rows()
        steps, losses = _columns([row for row in rows if row["loss"]], "loss")
        looked, values = _columns([row for row in rows if row["metric"]], "value")
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, losses, linewidth=0.8, color="tab:blue")
        axes.set(xlabel="step", ylabel="training loss")
        axes.grid(visible=True, alpha=0.3)
        if looked:
            other = axes.twinx()
            other.plot(looked, values, marker="o", markersize=3, color="tab:orange")
            other.set_ylabel(f"validation {next(row['metric'] for row in rows if row['metric'])}", color="tab:orange")
        figure.savefig(self._folder / PLOT_FILE, dpi=120)

    def _append(self, **cells: Any) -> None:
        path = self._folder / LOG_FILE
        new = not path.exists()
        with path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(cells)


def _columns(rows: list[Row], column: str) -> tuple[list[int], list[float]]:
    return [int(row["step"]) for row in rows], [float(row[column]) for row in rows]
