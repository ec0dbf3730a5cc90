"""A scenario's life, from the YAML to an empty machine.

    check, prepare -> create devices -> calibrate links -> shape -> limit -> run the program -> judge -> remove

`run` is that life; `up` stops before the program and leaves the devices standing; `calibrate` runs nothing but the
probe. Whatever happens in between, `devices` removes all that was made, and the record says how it ended.
"""

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from testbed import probe
from testbed.display import Display
from testbed.errors import InterruptError, TestbedError
from testbed.expect import Verdict, judge
from testbed.fleet import Fleet
from testbed.job import Job
from testbed.links import rules_for
from testbed.losses_seen import pattern_columns
from testbed.measuring import measure_links, report_calibration
from testbed.options import Options, check_cpus, check_events
from testbed.record import Record, Row, Status, describe_machine, mark_interrupted
from testbed.replay import differences, finished_run
from testbed.results import RESULTS_FILE, run_rows, write_table
from testbed.runtimes import RUNTIMES
from testbed.runtimes.state import ProcessId, RunState, new_run_id
from testbed.scenario import Scenario, device_names, load
from testbed.schedule import loss_changes, schedule_for
from testbed.trace_error import trace_rows
from testbed.workload import check, invoking_user, prepare

__all__ = [
    "Outcome",
    "calibrate",
    "conclude",
    "devices",
    "down",
    "recording",
    "remove_abandoned",
    "replay",
    "run",
    "run_program",
    "up",
]

TERMINATE_WAIT_S = 15.0


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    folder: Path
    tables: dict[str, list[Row]]
    verdicts: tuple[Verdict, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every expectation was met."""
        return all(verdict.met for verdict in self.verdicts)


def run(scenario: Scenario, options: Options, display: Display) -> Outcome:
    """Run a scenario to its end. Raises TestbedError; the run folder then says `failed`."""
    check_events(scenario, options)
    check(scenario)
    record = Record.create(name=scenario.name, scenario=scenario.dump(), out=options.out)
    with recording(record):
        machine = describe_machine()  # before agents wait for a word: git may take seconds
        prepare(scenario, record, display, invoking_user())
        with devices(scenario, options, record, display) as (fleet, _):
            if options.calibrate:
                display.phase("calibrating links")
                rows = measure_links(fleet, scenario, record, full=False)
                report_calibration(rows, display, go_on=options.go_on)
            display.phase("shaping links, capping devices")
            fleet.shape()
            fleet.limit()
            run_program(fleet, scenario, options, record, display, machine=machine)
            display.phase("removing devices")
    return conclude(scenario, record)


def calibrate(scenario: Scenario, options: Options, display: Display) -> Outcome:
    """Measure every link of a scenario thoroughly; the rows are in the outcome's table `calibration`."""
    record = Record.create(name=f"{scenario.name}-calibration", scenario=scenario.dump(), out=options.out)
    with recording(record), devices(scenario, options, record, display) as (fleet, _):
        display.phase("calibrating links")
        rows = measure_links(fleet, scenario, record, full=True)
        record.manifest({**describe_machine(), **fleet.facts(), "options": options.plain()})
    verdicts = tuple(Verdict(bool(row["ok"]), probe.describe(row)) for row in rows)
    record.finish("ok" if all(verdict.met for verdict in verdicts) else "failed")
    identity = invoking_user()
    record.hand_over(identity.uid, identity.gid)
    return Outcome(record.folder, record.tables, verdicts)


def replay(
    folder: Path, display: Display, *, out: Path | None = None, runtime: str | None = None
) -> tuple[Outcome, list[str]]:
    """Run a finished run again; return what differs between the two that should not. Its expectations are left out."""
    before = finished_run(folder)
    scenario = load(folder / "scenario.yaml")
    options = Options(
        runtime=runtime or str(before["runtime"]),
        out=out,
        uncapped=bool(before["uncapped"]),
        calibrate=False,
        go_on=bool(before["go_on"]),
    )
    outcome = run(scenario.model_copy(update={"expect": ()}), options, display)
    return outcome, differences(folder, outcome.folder)


def run_program(
    fleet: Fleet,
    scenario: Scenario,
    options: Options,
    record: Record,
    display: Display,
    *,
    machine: Mapping[str, Any],
    may_wait: bool = False,
) -> None:
    """Run the workload on devices that are shaped and limited, and record it. With `may_wait`, see `Fleet.execute`."""
    display.phase(f"running {' '.join(scenario.workload.command)}")
    job = Job(
        name=scenario.workload.command[0],
        command=tuple(scenario.workload.command),
        config=scenario.workload.config,
        folder=Path.cwd(),
        timeout_s=options.timeout_s,
        with_events=True,
        summary=scenario.workload.summary or {},
    )
    try:
        fleet.execute(job, invoking_user(), may_wait=may_wait)
    finally:
        record.manifest({**machine, **fleet.facts(), "options": options.plain()})
    if job.summary and not record.tables.get("summary"):
        display.say(
            f"workload.summary: no JSON object on stdout had all of {', '.join(job.summary.values())}; see logs/"
        )
    _record_links(fleet, scenario, record)
    for row in trace_rows(scenario, record.tables.get("events", [])):
        record.row("traces", row)


def conclude(scenario: Scenario, record: Record) -> Outcome:
    """Judge what a run that came to its end has recorded, and close the record."""
    verdicts = judge(scenario.expect, record.tables.get("summary", []))
    met = all(verdict.met for verdict in verdicts)
    record.finish("ok" if met else "failed", expectations=[asdict(verdict) for verdict in verdicts])
    tidy = run_rows(record.folder, scenario.model_dump(mode="json", by_alias=True))
    if tidy:
        write_table(record.folder / RESULTS_FILE, tidy)
    identity = invoking_user()
    record.hand_over(identity.uid, identity.gid)
    return Outcome(record.folder, record.tables, tuple(verdicts))


def up(scenario: Scenario, options: Options, display: Display) -> RunState:
    """Make and shape a scenario's devices and leave them standing, for `exec`, until `down`."""
    with tempfile.TemporaryDirectory(prefix="testbed-up-") as scratch:
        record = Record.create(name=scenario.name, scenario=scenario.dump(), out=Path(scratch) / "record")
        with devices(scenario, options, record, display, keep=True) as (fleet, state):
            fleet.shape()
            fleet.limit()
            fleet.hold()
            return state.with_changes(held=True, addresses=fleet.addresses())


def down(state: RunState) -> None:
    """Remove a run's devices. A controller that still looks after them is asked to end first."""
    if not state.held and state.controller.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(state.controller.pid, signal.SIGTERM)
        deadline = time.monotonic() + TERMINATE_WAIT_S
        while state.controller.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
    if state.folder.exists():
        RUNTIMES[state.runtime](state).remove()
        if state.results:
            mark_interrupted(Path(state.results))
        state.forget()


def remove_abandoned() -> list[RunState]:
    """Remove what crashed runs left behind, and only that; return what they were."""
    abandoned = [state for state in RunState.load_all() if state.abandoned()]
    for state in abandoned:
        down(state)
    return abandoned


@contextlib.contextmanager
def recording(record: Record) -> Iterator[None]:
    """Mark the record failed or interrupted if the block does not end well."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        _finish(record, "interrupted", "interrupted")
        raise InterruptError(f"interrupted; what was measured until then is in {record.folder}") from interrupt
    except TestbedError as error:
        _finish(record, "failed", str(error))
        raise
    except BaseException as error:
        _finish(record, "failed", repr(error))
        raise


def _finish(record: Record, status: Status, error: str) -> None:
    """Write how the run ended, unless the run folder is what failed: the first error is the one to report."""
    identity = invoking_user()
    with contextlib.suppress(TestbedError):
        record.finish(status, error=error)
        record.hand_over(identity.uid, identity.gid)


@contextlib.contextmanager
def devices(
    scenario: Scenario, options: Options, record: Record, display: Display, *, keep: bool = False
) -> Iterator[tuple[Fleet, RunState]]:
    """Make a scenario's devices; remove them at the end, unless `keep` is set and the block ended well."""
    check_cpus(scenario, options)
    for left in remove_abandoned():
        display.say(f"removed what run {left.run_id} ({left.name}) left behind")
    state = RunState(
        run_id=new_run_id(),
        name=scenario.name,
        runtime=options.runtime,
        devices=device_names(scenario.devices.count),
        controller=ProcessId.of(os.getpid()),
        scenario=scenario.dump(),
        results="" if keep else str(record.folder.resolve()),
    )
    state.save()
    runtime = RUNTIMES[options.runtime](state, uncapped=options.uncapped)
    finished = False
    try:
        display.phase(f"starting {scenario.devices.count} devices ({options.runtime})")
        with Fleet(scenario, runtime, record, display) as fleet, display.watching(state.run_id, fleet.activities):
            fleet.create()
            state = state.with_changes(agents=runtime.agents())
            yield fleet, state
            finished = True
    finally:
        if not (keep and finished):
            with _uninterrupted():
                runtime.remove()
                state.forget()


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let an impatient second Ctrl-C not stop the clean-up."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _record_links(fleet: Fleet, scenario: Scenario, record: Record) -> None:
    """Write what every link was asked for and what the kernel counted on it during the program."""
    for destination, links in fleet.counters().items():
        schedule = schedule_for(scenario, destination)
        for rule in rules_for(scenario, destination, fleet.addresses()).rules:
            if rule.source in links:  # not where the destination is down
                ends: Row = {"source": rule.source, "destination": destination}
                asked, count = scenario.links.settings(rule.source, destination).columns(), links[rule.source]
                changed = loss_changes(schedule, rule.source)
                pattern = pattern_columns(rule, destination, count.packets, changed=changed)
                record.row("links", {**ends, **asked, **count.model_dump(), **pattern})
