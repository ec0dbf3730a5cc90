"""Say where the time of a request goes, of every strategy of one run or of a sweep's runs: a table, layer by layer.

    python tests/bench/time_shares.py FOLDER        a run folder, or a sweep's

    FOLDER/**/requests.csv ──> milliseconds a layer on rank 0: encode, send, wait, remote, attention, rest, other

`other` is what no span covers: the interpreter between them, and waiting for the processor. `explained` is what the
spans and the embedding, the input and the head come to, in percent of the measured latency. Medians over requests; the
spread is that of the runs' medians. Not a test: judges nothing.
"""

import statistics
import sys
from pathlib import Path

import pandas as pd

LAYER_SPANS = ("encode", "send", "wait", "remote", "attention", "rest")
OTHER_SPANS = ("input", "embed", "head")
LAYERS = 12
"""Of ViT-Base and of GPT-2 small."""


def main() -> None:
    """Print one row a strategy."""
    folder = Path(sys.argv[1])
    requests = pd.concat(
        [pd.read_csv(path).assign(run=str(path.parent)) for path in sorted(folder.rglob("requests.csv"))]
    )
    requests["settings"] = requests["settings"].fillna("")
    print("| strategy | p50, s | over single |", " | ".join(LAYER_SPANS), "| other | explained |")  # noqa: T201
    print("| --- " * (len(LAYER_SPANS) + 5) + "|")  # noqa: T201
    single_s = requests[requests["strategy"] == "single"].groupby("run")["latency_s"].median()
    for (strategy, settings), rows in requests.groupby(["strategy", "settings"], sort=False):
        print(_line(f"{strategy} {settings}".strip(), rows, single_s))  # noqa: T201


def _line(name: str, rows: pd.DataFrame, single_s: "pd.Series[float]") -> str:
    """Return a strategy's row of the table."""
    latency_s = rows.groupby("run")["latency_s"].median()
    speedups = [single_s[run] / own_s for run, own_s in latency_s.items() if run in single_s]
    spans_s = sum(rows[f"{span}_s"] for span in (*LAYER_SPANS, *OTHER_SPANS))
    cells = [f"{1000 * rows[f'{span}_s'].median() / LAYERS:.1f}" for span in LAYER_SPANS]
    cells.append(f"{1000 * (rows['latency_s'] - spans_s).median() / LAYERS:.1f}")
    cells.append(f"{100 * (spans_s / rows['latency_s']).median():.1f} %")
    return f"| {name} | {_with_spread(list(latency_s))} | {_with_spread(speedups)} | {' | '.join(cells)} |"


def _with_spread(values: list[float]) -> str:
    """Return the median and, of several values, the lowest and highest."""
    if not values:
        return "–"
    shown = f"{statistics.median(values):.2f}"
    return shown if len(values) == 1 else f"{shown} ({min(values):.2f}–{max(values):.2f})"


if __name__ == "__main__":
    main()
