"""Put the cells of the experiment on loss together: a table and two charts.

    python tests/bench/loss_figures.py FOLDER       run folders of scenarios/loss/*.yaml, named as their scenarios

    FOLDER/<cell>/summary.csv, … ──> FOLDER/{table.csv, table.md, latency.svg, tokens.svg}

`scripts/loss-experiment` makes the run folders. Cells that are missing are left out and named. Not a test: judges
nothing.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chart_style import COLOURS, STYLE
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

RATES = {"10mbps": "10 Mbps", "50mbps": "50 Mbps"}
LOSSES = {"0": "none", "0_5": "0.5 %", "1": "1 %", "2": "2 %", "5": "5 %", "10": "10 %", "bursts": "bursts, 2.3 %"}
WAYS = ("reliable", "datagram", "datagram copies=2", "datagram stale")
"""How codes travel, as the end of a row's settings says; nothing is said of `reliable`."""
MARKERS = "osD^"
MEASURES = {
    "latency_p50_s": "p50, s",
    "latency_p95_s": "p95, s",
    "latency_p99_s": "p99, s",
    "missing_tokens_pct": "missing, %",
    "agreement_cosine": "cosine",
    "accuracy_pct": "accuracy, %",
}
LATENCIES = tuple(MEASURES)[:3]

Row = dict[str, Any]


def main() -> None:
    """Read all cells of a folder and write what they come to."""
    folder = Path(sys.argv[1])
    rows = [row for rate in RATES for loss in LOSSES for row in read_cell(folder / f"{rate}-{loss}", rate, loss)]
    found = {(row["rate"], row["loss"]) for row in rows}
    missing = [f"{rate}-{loss}" for rate in RATES for loss in LOSSES if (rate, loss) not in found]
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["rate", "loss", "codes", "requests", *MEASURES, "p95_over_lossless"])
        writer.writeheader()
        writer.writerows(with_ratios(rows))
    (folder / "table.md").write_text(markdown(with_ratios(rows)))
    charts = {"latency": LATENCIES, "tokens": ("missing_tokens_pct", "accuracy_pct", "agreement_cosine")}
    for name, measures in charts.items():
        with rc_context(STYLE | {"svg.hashsalt": "loss"}):
            draw(rows, measures, folder / f"{name}.svg")
    print((folder / "table.md").read_text())  # noqa: T201 - this is a program
    if missing:
        print("not there:", ", ".join(missing))  # noqa: T201


def read_cell(folder: Path, rate: str, loss: str) -> list[Row]:
    """Return a row for each way of travelling, and one for the whole model on one device."""
    if not (folder / "summary.csv").exists():
        return []
    with (folder / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {
            "rate": rate,
            "loss": loss,
            "codes": way_of(row),
            "requests": int(row["requests"]),
            **{name: float(row[name]) if row.get(name) else None for name in MEASURES},
        }
        for row in rows
    ]


def way_of(row: dict[str, str]) -> str:
    """Say how the codes of a row of the summary travelled."""
    if row["strategy"] == "single":
        return "(one device)"
    return next((way for way in reversed(WAYS) if row["settings"].endswith(way)), WAYS[0])


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Add each p95 over that of the same way on the same links without loss; empty where that was not measured."""
    lossless = {(row["rate"], row["codes"]): row["latency_p95_s"] for row in rows if row["loss"] == "0"}
    ratios = []
    for row in rows:
        base = lossless.get((row["rate"], row["codes"]))
        ratios.append({**row, "p95_over_lossless": round(row["latency_p95_s"] / base, 3) if base else None})
    return ratios


def markdown(rows: Sequence[Row]) -> str:
    """Return the table as text."""
    heads = ["rate", "loss", "codes travel", *MEASURES.values(), "p95 over its own lossless"]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for row in rows:
        digits = {**dict.fromkeys(LATENCIES, 3), "missing_tokens_pct": 1, "agreement_cosine": 3, "accuracy_pct": 1}
        cells = [RATES[row["rate"]], LOSSES[row["loss"]], row["codes"]]
        cells += ["–" if row[name] is None else f"{row[name]:.{digits[name]}f}" for name in MEASURES]
        ratio = row["p95_over_lossless"]
        lines.append("| " + " | ".join([*cells, "–" if ratio is None else f"{ratio:.2f}"]) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], measures: Sequence[str], path: Path) -> None:
    """Draw a row of axes for each measure, a column for each rate, a line for each way of travelling."""
    figure = Figure(figsize=(9, 2.5 * len(measures) + 0.6), layout="constrained")
    FigureCanvasSVG(figure)
    grid = figure.subplots(len(measures), len(RATES), sharex=True, sharey="row", squeeze=False)
    handles: dict[str, Any] = {}
    for line, measure in enumerate(measures):
        for column, (rate, title) in enumerate(RATES.items()):
            axes = grid[line][column]
            for way, colour, marker in zip(WAYS, COLOURS, MARKERS, strict=True):
                handles[way] = plot_way(axes, rows, rate, way, measure, colour=colour, marker=marker)
            axes.set_xticks(range(len(LOSSES)), list(LOSSES.values()))
            axes.margins(y=0.12)
            if line == 0:
                axes.set_title(f"{title} a link")
            if column == 0:
                axes.set_ylabel(MEASURES[measure])
        if measure in LATENCIES or measure == "missing_tokens_pct":
            grid[line][0].set_ylim(bottom=0)  # of the whole row, once everything is drawn
    for axes in grid[-1]:
        axes.set_xlabel("packets lost")
        axes.tick_params(axis="x", labelrotation=30)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(WAYS))
    figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")


def plot_way(axes: Any, rows: Sequence[Row], rate: str, way: str, measure: str, *, colour: str, marker: str) -> Any:
    """Draw one line over the shares of independent loss, and a point apart for bursts."""
    places = list(LOSSES)
    mine = [row for row in rows if (row["rate"], row["codes"]) == (rate, way) and row[measure] is not None]
    points = sorted((places.index(row["loss"]), row[measure]) for row in mine)
    single = [point for point in points if places[point[0]] != "bursts"]
    look = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.6}
    (handle,) = axes.plot([x for x, _ in single], [y for _, y in single], **look)
    apart = [point for point in points if places[point[0]] == "bursts"]
    axes.plot([x for x, _ in apart], [y for _, y in apart], **{**look, "linewidth": 0})
    return handle


if __name__ == "__main__":
    main()
