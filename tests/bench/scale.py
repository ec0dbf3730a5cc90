"""How the testbed grows: time to make, shape and remove 2 to 64 devices, the controller's memory, how late events are.

    sudo python tests/bench/scale.py FOLDER [--devices 2,4,8,16,32,64] [--repeat 3] [--view]

Every network is one process of its own, whose program sleeps while events change the rate of all links from d0. Writes
FOLDER/scale.csv as it goes, and FOLDER/scale.svg. `--view` instead runs each network for longer with and without the
live view, by turns, and prints what the controller's CPU share comes to. Not a test: judges nothing.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from chart_style import COLOURS, STYLE
from rich.console import Console

from testbed import controller
from testbed.display import Display
from testbed.errors import TestbedError
from testbed.options import Options
from testbed.record import Record
from testbed.scenario import load

SMALL = 16
"""Up to so many devices, networks are made several times."""
PROGRAM_S = 8
VIEW_PROGRAM_S = 20
SCENARIO = """
name: scale
seed: 1
devices: {{count: {count}, memory_mb: 200}}
links: {{default: {{rate_mbps: 10, loss_pct: 1}}}}
events:
{events}
workload: {{command: [sleep, "{seconds}"]}}
"""
EVENTS = "\n".join(
    f'  - {{at_s: {1 + n / 2}, link: {{from: d0, to: "*"}}, set: {{rate_mbps: {5 + n}}}}}' for n in range(6)
)
TIMES = {"up_s": "make devices, agents ready", "shape_s": "shape", "start_s": "start programs", "down_s": "remove"}
Row = dict[str, Any]


def measure(count: int, *, seconds: int, view: bool) -> Row:
    """Make a network, run a program that does nothing on it, remove it; return what that took."""
    with TemporaryDirectory(prefix="scale-") as scratch, Path(os.devnull).open("w") as nowhere:
        file = Path(scratch) / "scale.yaml"
        file.write_text(SCENARIO.format(count=count, events=EVENTS, seconds=seconds))
        scenario, options = load(file), Options(calibrate=False, go_on=True)
        record = Record.create(name="scale", scenario=scenario.dump(), out=Path(scratch) / "out")
        console = Console(file=nowhere, force_terminal=True, width=120, height=50)
        clock = [time.monotonic()]
        with Display(console, live=view) as display:
            with controller.devices(scenario, options, record, display) as (fleet, state):
                clock.append(time.monotonic())
                fleet.shape()
                fleet.limit()
                clock.append(time.monotonic())
                spent_s = time.process_time()
                controller.run_program(fleet, scenario, options, record, display, machine={})
                spent_s = time.process_time() - spent_s
                clock.append(time.monotonic())
                agents_mb = sum(proportional_mb(agent.pid) for agent in state.agents.values())
                clock.append(time.monotonic())
            clock.append(time.monotonic())
        late_ms = [float(row["late_ms"] or 0) for row in record.tables.get("events", [])]
    return {
        "devices": count,
        "up_s": clock[1] - clock[0],
        "shape_s": clock[2] - clock[1],
        "start_s": clock[3] - clock[2] - seconds,
        "down_s": clock[5] - clock[4],
        "controller_cpu_s": spent_s,
        "controller_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "agents_mb": agents_mb,
        "num_changes": len(late_ms),
        "late_p50_ms": statistics.median(late_ms),
        "late_p95_ms": statistics.quantiles(late_ms, n=20, method="inclusive")[-1],
        "late_max_ms": max(late_ms),
    }


def proportional_mb(pid: int) -> float:
    """Memory of a process, its part of what it shares with others."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def in_process(count: int, *, seconds: int, view: bool = False) -> Row:
    """Do it in a process of its own, so that memory is that of this network alone."""
    line = [sys.executable, __file__, "--one", str(count), "--seconds", str(seconds), *(["--view"] if view else [])]
    done = subprocess.run(line, capture_output=True, text=True)
    load = os.getloadavg()[0]
    if done.returncode != 0:
        return {"devices": count, "load": round(load, 2), "error": done.stderr.strip().splitlines()[-1]}
    return {**json.loads(done.stdout.splitlines()[-1]), "load": round(load, 2), "error": ""}


def grow(counts: Sequence[int], repeat: int, folder: Path) -> None:
    """Measure every size, small ones several times."""
    rows: list[Row] = []
    with (folder / "scale.csv").open("w", newline="") as file:
        for count in counts:
            for number in range(1, (repeat if count <= SMALL else 1) + 1):
                row = {"repeat": number, **in_process(count, seconds=PROGRAM_S)}
                row = {name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()}
                if not rows:
                    writer = csv.DictWriter(file, row)
                    writer.writeheader()
                writer.writerow(row)
                file.flush()
                rows.append(row)
                print(json.dumps(row), flush=True)  # noqa: T201 - this is a program
    from matplotlib import rc_context  # not where memory is measured

    with rc_context(STYLE | {"svg.hashsalt": "scale"}):
        draw([row for row in rows if not row["error"]], folder / "scale.svg")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw times, memory and lateness over the number of devices, with the spread of what was repeated."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    FigureCanvasSVG(figure)
    times, memory, late = figure.subplots(1, 3)
    for colour, (name, label) in zip(COLOURS, TIMES.items(), strict=True):
        curve(times, rows, name, label, colour)
    curve(memory, rows, "controller_peak_mb", "controller, peak", COLOURS[0])
    curve(memory, rows, "agents_mb", "all agents", COLOURS[1])
    for colour, name in zip(COLOURS, ("late_p50_ms", "late_p95_ms", "late_max_ms"), strict=False):
        curve(late, rows, name, name.split("_")[1], colour)
    for axes, title in ((times, "seconds"), (memory, "memory, MB"), (late, "changes late by, ms")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = sorted({row["devices"] for row in rows})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel("devices")
        axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def curve(axes: Any, rows: Sequence[Row], name: str, label: str, colour: str) -> None:
    """Draw medians, and from the least to the largest value a line."""
    counts = sorted({row["devices"] for row in rows})
    values = [[max(row[name], 1e-3) for row in rows if row["devices"] == count] for count in counts]
    axes.plot(counts, [statistics.median(own) for own in values], "o-", color=colour, label=label, markersize=4)
    axes.vlines(counts, [min(own) for own in values], [max(own) for own in values], color=colour)


def compare_views(counts: Sequence[int], repeat: int) -> None:
    """Print the controller's CPU share with and without the live view, measured by turns."""
    for count in counts:
        spent: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(repeat):
            for view in spent:
                row = in_process(count, seconds=VIEW_PROGRAM_S, view=view)
                if row["error"]:
                    raise SystemExit(row["error"])
                spent[view].append(row["controller_cpu_s"] / VIEW_PROGRAM_S)
        without, with_view = (100 * statistics.median(spent[view]) for view in (False, True))
        print(  # noqa: T201
            f"{count} devices: controller at {without:.1f} % of a core without the view, {with_view:.1f} % with it, "
            f"{with_view / without:.1f} times as much",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("scale"))
    parser.add_argument("--devices", default="2,4,8,16,32,64")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--view", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    counts = [int(word) for word in asked.devices.split(",")]
    if asked.one:
        try:
            print(json.dumps(measure(asked.one, seconds=asked.seconds, view=asked.view)))  # noqa: T201
        except TestbedError as error:
            sys.exit(str(error))
    elif asked.view:
        compare_views(counts, asked.repeat)
    else:
        asked.folder.mkdir(parents=True, exist_ok=True)
        grow(counts, asked.repeat, asked.folder)


if __name__ == "__main__":
    main()
