"""Sweeps on devices that are not there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console
from ruamel.yaml import YAML

from testbed.controller import Outcome, conclude, recording
from testbed.display import Display
from testbed.record import Record
from testbed.sweep.cells import Sweep, load
from testbed.sweep.folder import Description, SweepFolder
from testbed.sweep.order import Run, ordered, shard
from testbed.sweep.running import Tally, run_sweep

RATE, COUNT = "links.default.rate_mbps", "devices.count"


def make_sweep(folder: Path, **content: Any) -> Sweep:
    base = {
        "name": "base",
        "devices": {"count": 2},
        "workload": {"command": ["true"]},
        "expect": [{"metric": "rate", "at_most": 30}],
    }
    tree = {"name": "s", "base": "base.yaml", "matrix": {COUNT: [2, 3], RATE: [10, 20]}, **content}
    writer = YAML(typ="safe", pure=True)
    for name, text in (("base.yaml", base), ("sweep.yaml", tree)):
        with (folder / name).open("w") as file:
            writer.dump(text, file)
    return load(folder / "sweep.yaml")


@dataclass
class FakeStage:
    """Devices that report their rate as a measurement, or fail on cue: at the n-th run of all."""

    failures: dict[int, BaseException] = field(default_factory=dict)
    opened: list[list[str]] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    follows: list[bool] = field(default_factory=list)

    @contextmanager
    def open(self, runs: Sequence[Run]) -> Iterator["FakeStage"]:
        self.opened.append([name(run) for run in runs])
        yield self

    def serve(self, run: Run, record: Record, *, following: Run | None) -> Outcome:
        self.served.append(name(run))
        self.follows.append(following is not None)
        with recording(record):
            rate = run.cell.scenario.links.default.rate_mbps
            record.row("summary", {"method": "m", "rate": rate, "time_s": float(len(self.served))})
            if len(self.served) in self.failures:
                raise self.failures[len(self.served)]
        return conclude(run.cell.scenario, record)


def name(run: Run) -> str:
    return f"{run.cell.values[COUNT]}x{run.cell.values[RATE]}" + (f"#{run.number}" if run.number > 1 else "")


def go(
    sweep: Sweep, out: Path, stage: FakeStage, *, repeat: int = 1, part: tuple[int, int] = (1, 1)
) -> tuple[Tally, str]:
    said = StringIO()
    cells = shard(ordered(sweep.cells), *part)
    described = Description.of(sweep, cells, repeat=repeat, shard=None)
    with SweepFolder.open(out, described) as folder:
        display = Display(Console(file=said, width=200), live=False)
        return run_sweep(sweep, cells, repeat, folder, stage=stage, display=display), said.getvalue()
