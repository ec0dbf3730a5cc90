"""Devices that serve one run of a sweep after the other.

    open --> prepare all workloads, make devices, calibrate all links that come, limit
    serve -> shape --> start the program, or let the one that waits go on --> judge
    ...
    close --> remove devices

Calibration is before the limits, as in a single run, so the links of all runs are measured when devices have been made.
Each cell's record has the measurements of its own links, and its rules are read back again when they are put in place.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from testbed import controller
from testbed.controller import Outcome
from testbed.display import Display
from testbed.fleet import Fleet
from testbed.measuring import measure_links, report_calibration
from testbed.options import Options
from testbed.record import Record, describe_machine
from testbed.record import Row as RecordRow
from testbed.runtimes.state import RunState
from testbed.scenario import Scenario
from testbed.sweep.order import Run
from testbed.workload import invoking_user, prepare

__all__ = ["DevicesFor", "Session", "Stage"]


class DevicesFor(Protocol):
    """Devices that exist."""

    def serve(self, run: Run, record: Record, *, following: Run | None) -> Outcome:
        """Run a cell to its end; `following` is the run that comes next on these devices. Raises TestbedError."""
        ...


class Stage(Protocol):
    """Whatever makes devices for runs that share them."""

    def open(self, runs: Sequence[Run]) -> AbstractContextManager[DevicesFor]:
        """Make devices for these runs, and remove them at the end."""
        ...


class Session:
    """A `Stage` of real devices. `log` is the record of what happens between the runs."""

    def __init__(self, options: Options, log: Record, display: Display):
        self._options, self._log, self._display = options, log, display
        self._machine = describe_machine()
        self._prepared: set[str] = set()
        self._measured: dict[str, list[RecordRow]] = {}

    @contextmanager
    def open(self, runs: Sequence[Run]) -> Iterator["_Devices"]:
        """Make devices for these runs, which all have the same."""
        for run in runs:
            self._prepare(run.cell.scenario)
        first = runs[0].cell.scenario
        with controller.devices(first, self._options, self._log, self._display) as (fleet, state):
            if self._options.calibrate:
                self._calibrate(fleet, [run.cell.scenario for run in runs])
            fleet.turn_to(first, self._log)
            fleet.shape()
            fleet.limit()
            made = _Devices(fleet, state, self)
            yield made
            self._display.phase("removing devices")

    def _prepare(self, scenario: Scenario) -> None:
        """Let a workload prepare once, before any device exists: an agent must not wait so long for a word."""
        key = _text(scenario, {"workload"})
        if key not in self._prepared:
            prepare(scenario, self._log, self._display, invoking_user())
            self._prepared.add(key)

    def _calibrate(self, fleet: Fleet, scenarios: Sequence[Scenario]) -> None:
        """Measure the links of these scenarios, those that are equal once."""
        wanted = {_links(scenario): scenario for scenario in scenarios}
        left = [(key, scenario) for key, scenario in wanted.items() if key not in self._measured]
        for number, (key, scenario) in enumerate(left, start=1):
            self._display.phase(f"calibrating links, setting {number} of {len(left)}")
            with tempfile.TemporaryDirectory(prefix="testbed-sweep-") as scratch:
                record = Record.create(name=scenario.name, scenario=scenario.dump(), out=Path(scratch) / "calibration")
                fleet.turn_to(scenario, record)
                self._measured[key] = measure_links(fleet, scenario, record, full=False)

    def serve(self, fleet: Fleet, scenario: Scenario, record: Record, *, may_wait: bool) -> Outcome:
        """Run a scenario on devices that exist."""
        with controller.recording(record):
            fleet.turn_to(scenario, record)
            measured = self._measured.get(_links(scenario), [])
            for row in measured:
                record.row("calibration", row)
            if self._options.calibrate:
                report_calibration(measured, self._display, go_on=self._options.go_on)
            fleet.shape()
            controller.run_program(
                fleet, scenario, self._options, record, self._display, machine=self._machine, may_wait=may_wait
            )
        return controller.conclude(scenario, record)


class _Devices:
    """The devices of some runs, and the program that may be waiting on them."""

    def __init__(self, fleet: Fleet, state: RunState, session: Session):
        self._fleet, self._state, self._session = fleet, state, session
        self._waiting_for: Run | None = None

    def serve(self, run: Run, record: Record, *, following: Run | None) -> Outcome:
        """See `DevicesFor`."""
        self._state = self._state.with_changes(results=str(record.folder.resolve()))
        if self._waiting_for is not None and not run.shares_program_with(self._waiting_for):
            self._fleet.dismiss()
        may_wait = following is not None and run.shares_program_with(following)
        self._waiting_for = following if may_wait else None
        return self._session.serve(self._fleet, run.cell.scenario, record, may_wait=may_wait)


def _links(scenario: Scenario) -> str:
    return _text(scenario, {"devices", "links", "seed"})


def _text(scenario: Scenario, blocks: set[str]) -> str:
    return json.dumps(scenario.model_dump(mode="json", by_alias=True, include=blocks), sort_keys=True)
