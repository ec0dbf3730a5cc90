"""Where the time of a request goes: by strategy from `requests.csv`, by layer from the trace.

    requests.csv, columns x_s --by_strategy--> mean seconds a part; what the parts leave over is "untold"
    timeline.json             --by_layer-----> mean seconds a part and layer of rank 0's measured requests

In the trace a moment "<label>:begin" comes before the measured requests of a label, and spans say request and layer.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from testbed import plots
from testbed.record import Row
from testbed.report.folder import RunFolder
from testbed.report.model import Figure, Section
from testbed.report.rows import identity, key_of, label_of, numbers

__all__ = ["UNTOLD", "by_layer", "by_strategy", "part_names", "time_spent"]

LARGEST_TRACE_BYTES = 100 << 20
LATENCY = "latency_s"
UNTOLD = "untold"
TRACE = "timeline.json"
MOST_LAYERS = 48
MILLI = 1e3


def time_spent(run: RunFolder) -> Section:
    """Return both views of one run."""
    missing, figures = [], []
    requests = run.rows("requests")
    parts = by_strategy(requests)
    if parts:
        bars = [plots.Stack(label, _in_ms(found)) for label, found in parts.items()]
        order = part_names(requests)
        note = "Mean over requests, on the device that has the input. Untold is what no part accounts for."
        figures.append(Figure("A request, by part", plots.stacks(bars, label="milliseconds", order=order), note))
    else:
        missing.append(
            "requests.csv names no parts of a request (columns that end in _s)."
            if requests
            else run.why_missing("requests.csv")
        )
    layers, fault = _layers_of(run)
    missing += [fault] if fault else []
    top = 1.05 * MILLI * max((sum(part.values()) for found in layers.values() for part in found.values()), default=0)
    for label, found in layers.items():
        bars = [plots.Stack(str(layer), _in_ms(part)) for layer, part in sorted(found.items())]
        chart = plots.stacks(bars, label="milliseconds", order=_order(requests, found), upright=True, top=top)
        figures.append(
            Figure(
                f"{label}, layer by layer",
                chart,
                "Mean over measured requests, rank 0; all charts of layers have one scale.",
            )
        )
    lead = f"{TRACE} in the run folder has every span and message; open it in Perfetto (ui.perfetto.dev)."
    return Section("time", "Where the time goes", lead if layers else "", tuple(missing), tuple(figures))


def by_strategy(requests: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return the mean seconds of each part by label; nothing if requests have no parts."""
    parts = part_names(requests)[:-1]
    columns = identity(requests)
    keys = list(dict.fromkeys(key_of(row, columns) for row in requests))
    found: dict[str, dict[str, float]] = {}
    for key in keys if parts else ():
        rows = [row for row in requests if key_of(row, columns) == key]
        mean = {name: _mean(numbers(rows, f"{name}_s")) for name in parts}
        told = {name: seconds for name, seconds in mean.items() if seconds > 0}
        rest = _mean(numbers(rows, LATENCY)) - sum(told.values())
        found[label_of(key, keys)] = {**told, UNTOLD: max(rest, 0.0)}
    return found


def part_names(requests: Sequence[Row]) -> list[str]:
    """Return the parts that requests have columns for, and what they leave over."""
    names = dict.fromkeys(name for row in requests for name in row)
    return [*(name.removesuffix("_s") for name in names if name.endswith("_s") and name != LATENCY), UNTOLD]


def by_layer(
    events: Sequence[Mapping[str, Any]], requests: Mapping[str, int], rank: int = 0
) -> dict[str, dict[int, dict[str, float]]]:
    """Return mean seconds by label, layer and part; `requests` says how many were measured under each label.

    Spans that belong to no layer (below 0) are left out. Events without marks give nothing.
    """
    own = [event for event in events if event.get("tid") == rank]
    marks = sorted((event for event in own if event.get("cat") == "marks"), key=lambda event: float(event["ts"]))
    spans = sorted((event for event in own if event.get("cat") == "spans"), key=lambda event: float(event["ts"]))
    begins = [(mark["name"].removesuffix(":begin"), float(mark["ts"])) for mark in marks]
    begins = [(label, at) for label, at in begins if label in requests]
    found = {}
    for (label, begin), end in zip(begins, [*(at for _, at in begins[1:]), float("inf")], strict=True):
        within = [span for span in spans if begin <= span["ts"] < end]
        measured = set(list(dict.fromkeys(span["args"]["request"] for span in within))[: requests[label]])
        layers: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for span in within:
            if span["args"]["request"] in measured and span["args"]["layer"] >= 0:
                layers[span["args"]["layer"]][span["name"]] += span["dur"] / 1e6 / len(measured)
        if layers:
            found[label] = {layer: dict(parts) for layer, parts in layers.items()}
    return found


def _order(requests: Sequence[Row], layers: Mapping[int, Mapping[str, float]]) -> list[str]:
    """Return the parts of requests, and then those that only layers have."""
    return list(dict.fromkeys([*part_names(requests), *(part for parts in layers.values() for part in parts)]))


def _layers_of(run: RunFolder) -> tuple[dict[str, dict[int, dict[str, float]]], str]:
    """Return the layers of a run by label, or a sentence that says why there are none."""
    path = run.path / TRACE
    if not path.exists():
        return {}, f"No layers: {run.why_missing(TRACE)}"
    if path.stat().st_size > LARGEST_TRACE_BYTES:
        return {}, f"No layers: {TRACE} has more than {LARGEST_TRACE_BYTES >> 20} MiB; look at it in Perfetto."
    try:
        layers = by_layer(_events(path), _measured(run.rows("requests")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, f"No layers: {TRACE} is no trace that this version can read ({error!r})."
    layers = {label: found for label, found in layers.items() if len(found) <= MOST_LAYERS}
    return layers, "" if layers else f"No layers: {TRACE} has no spans with layers after a mark named in requests.csv."


def _events(path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events


def _measured(requests: Sequence[Row]) -> dict[str, int]:
    """Count requests by what a mark may call them: any number of their leading columns, in a row."""
    columns = identity(requests)
    counts: dict[str, int] = defaultdict(int)
    for row in requests:
        key = key_of(row, columns)
        for label in {" ".join(filter(None, key[:length])) for length in range(1, len(key) + 1)}:
            counts[label] += 1
    return counts


def _in_ms(parts: Mapping[str, float]) -> dict[str, float]:
    return {name: MILLI * seconds for name, seconds in parts.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
