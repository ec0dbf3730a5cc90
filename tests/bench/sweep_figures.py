"""Put a sweep over one axis together for docs/results: a table and a chart of speed-ups for each setting of the others.

    python tests/bench/sweep_figures.py FOLDER ALONG OUT       such as  results/vit-rates  rate_mbps  docs/results/

    FOLDER/results.csv ──> the table on standard output, OUT/<sweep>[-<others>].svg

A cell of the table is the median of a run's requests and, in brackets, how many times as fast that is as one device.
Not a test: judges nothing.
"""

import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

import testbed
from testbed.plot_canvas import standing_alone
from testbed.plots import Curve, curves

UNITS = {"rate_mbps": "Mbps a link", "count": "devices", "loss_pct": "% of packets lost", "image_size": "pixels a side"}
AXES = {
    "rate_mbps": "links.default.rate_mbps",
    "loss_pct": "links.default.loss_pct",
    "count": "devices.count",
    "image_size": "workload.config.model.image_size",
}


def main() -> None:
    """Draw and print one chart and one table for each setting of the axes that are not drawn along."""
    folder, along, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    frame = testbed.load_results(folder)
    frame = frame[frame["status"] == "ok"].assign(label=_labels(frame))
    others = [
        name for name, path in AXES.items() if name != along and path in frame.columns and frame[path].nunique() > 1
    ]
    for setting, rows in _panels(frame, others):
        name = "-".join([folder.name, *(f"{value:g}{other.partition('_')[0]}" for other, value in setting)])
        lines = [
            Curve(label, list(mine[AXES[along]]), list(mine["speedup_vs_single"]))
            for label, mine in rows.groupby("label", sort=False)
            if label != "single"
        ]
        chart = curves(
            lines, x_label=UNITS[along], y_label="times as fast as one device", log_x=True, log_y=True, rule=1
        )
        (out / f"{name}.svg").write_text(standing_alone(chart), encoding="utf-8")
        print(f"\n{name}\n\n{_table(rows, along)}")  # noqa: T201 - this is a program


def _labels(frame: pd.DataFrame) -> "pd.Series[str]":
    """Return what rows are called: the strategy and its settings."""
    return (frame["strategy"] + " " + frame["settings"].fillna("")).str.strip()


def _panels(frame: pd.DataFrame, others: list[str]) -> Iterable[tuple[list[tuple[str, float]], pd.DataFrame]]:
    """Yield each setting of the other axes with its rows, or all rows if there is no other axis."""
    if not others:
        yield [], frame
        return
    for values, rows in frame.groupby([AXES[other] for other in others]):
        yield list(zip(others, values, strict=True)), rows


def _table(rows: pd.DataFrame, along: str) -> str:
    """Return a line a strategy, a column a value on the axis."""
    values = sorted(rows[AXES[along]].unique())
    head = ["", *(f"{value:g} {UNITS[along].split()[0]}" for value in values)]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for label, mine in rows.groupby("label", sort=False):
        by_value = mine.groupby(AXES[along])[["latency_p50_s", "speedup_vs_single"]].median()
        cells = [
            f"{by_value.loc[value, 'latency_p50_s']:.2f} s ({by_value.loc[value, 'speedup_vs_single']:.2f})"
            if value in by_value.index
            else "–"
            for value in values
        ]
        lines.append("| " + " | ".join([str(label), *cells]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
