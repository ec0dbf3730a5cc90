"""Put a sweep together as tables for docs/results; its charts are those of `testbed report FOLDER --charts OUT`.

    python tests/bench/sweep_table.py FOLDER ALONG       such as  results/vit-rates  rate_mbps

A row is a strategy, a column a value of the axis ALONG; one table for each setting of the other axes. In a cell: the
median of a run's requests and, in brackets, how many times as fast that is as one device. Medians over repetitions.
Not a test: judges nothing.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

import testbed

AXES = {
    "rate_mbps": "links.default.rate_mbps",
    "loss_pct": "links.default.loss_pct",
    "count": "devices.count",
    "image_size": "workload.config.model.image_size",
}


def main() -> None:
    """Print one table for each setting of the axes that are not the columns."""
    folder, along = Path(sys.argv[1]), sys.argv[2]
    frame = testbed.load_results(folder)
    frame = frame[frame["status"] == "ok"].assign(label=_labels(frame))
    others = [name for name, path in AXES.items() if name != along and path in frame and frame[path].nunique() > 1]
    for setting, rows in _panels(frame, others):
        print(f"\n{setting or folder.name}\n\n{_table(rows, along)}")  # noqa: T201 - this is a program


def _labels(frame: pd.DataFrame) -> "pd.Series[str]":
    """Return what rows are called: the strategy and its settings."""
    return (frame["strategy"] + " " + frame["settings"].fillna("")).str.strip()


def _panels(frame: pd.DataFrame, others: list[str]) -> Iterable[tuple[str, pd.DataFrame]]:
    """Yield each setting of the other axes, in words, with its rows; all rows if there is no other axis."""
    if not others:
        yield "", frame
        return
    for values, rows in frame.groupby([AXES[other] for other in others]):
        yield ", ".join(f"{other} {value:g}" for other, value in zip(others, values, strict=True)), rows


def _table(rows: pd.DataFrame, along: str) -> str:
    """Return a line a strategy, a column a value on the axis."""
    values = sorted(rows[AXES[along]].unique())
    lines = [["", *(f"{along} {value:g}" for value in values)], ["---"] * (len(values) + 1)]
    for label, mine in rows.groupby("label", sort=False):
        by_value = mine.groupby(AXES[along])[["latency_p50_s", "speedup_vs_single"]].median()
        cells = [_cell(by_value.loc[value]) if value in by_value.index else "–" for value in values]
        lines.append([str(label), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(medians: "pd.Series[float]") -> str:
    return f"{medians['latency_p50_s']:.2f} s ({medians['speedup_vs_single']:.2f}×)"


if __name__ == "__main__":
    main()
