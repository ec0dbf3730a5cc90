"""A scenario's life, from the YAML to an empty machine.

    check, prepare -> create devices -> calibrate links -> shape -> limit -> run the program -> judge -> remove

`run` is that life; `up` stops before the program and leaves the devices standing; `calibrate` runs nothing but the
probe. Whatever happens in between, `_devices` removes all that was made, and the record says how it ended.
"""

import contextlib
import json
import os
import pwd
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from testbed import probe
from testbed.display import Display
from testbed.errors import CalibrationError, InputError, InterruptError, TestbedError, UnsupportedError
from testbed.event_clock import SIGNALS
from testbed.expect import Verdict, judge
from testbed.fleet import Fleet, Identity, Job
from testbed.links import rules_for
from testbed.loss import NO_LOSS
from testbed.program import search_path
from testbed.record import Record, Row, Status, describe_machine, mark_interrupted
from testbed.runtimes import RUNTIMES, userns
from testbed.runtimes.state import ProcessId, RunState, new_run_id
from testbed.scenario import Scenario, device_names

__all__ = ["Options", "Outcome", "calibrate", "check", "down", "remove_abandoned", "run", "up"]

TERMINATE_WAIT_S = 15.0
PROBE_TIMEOUT_S = 600.0
CPUS_SLACK = 1e-6
"""For sums of numbers such as 0.1."""


@dataclass(frozen=True)
class Options:
    """How to run a scenario, apart from what it says."""

    runtime: str = "netns"
    out: Path | None = None
    uncapped: bool = False
    calibrate: bool = True
    go_on: bool = False
    """Run although a link measured outside its tolerance."""
    timeout_s: float | None = None


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
    _check_events(scenario, options)
    check(scenario)
    record = Record.create(name=scenario.name, scenario=scenario.dump(), out=options.out)
    with _recording(record):
        identity = invoking_user()
        _prepare(scenario, record, display, identity)
        with _devices(scenario, options, record, display) as (fleet, _):
            if options.calibrate:
                display.phase("calibrating links")
                rows = _calibrate(fleet, scenario, record, full=False)
                _report_calibration(rows, display, go_on=options.go_on)
            display.phase("shaping links, capping devices")
            fleet.shape()
            fleet.limit()
            display.phase(f"running {' '.join(scenario.workload.command)}")
            job = Job(
                name=scenario.workload.command[0],
                command=tuple(scenario.workload.command),
                config=scenario.workload.config,
                folder=Path.cwd(),
                timeout_s=options.timeout_s,
                with_events=True,
            )
            try:
                fleet.execute(job, identity)
            finally:
                record.manifest({**describe_machine(), **fleet.facts(), "options": _plain(options)})
            _record_links(fleet, scenario, record)
            display.phase("removing devices")
    verdicts = judge(scenario.expect, record.tables.get("summary", []))
    met = all(verdict.met for verdict in verdicts)
    record.finish("ok" if met else "failed", expectations=[asdict(verdict) for verdict in verdicts])
    record.hand_over(identity.uid, identity.gid)
    return Outcome(record.folder, record.tables, tuple(verdicts))


def calibrate(scenario: Scenario, options: Options, display: Display) -> Outcome:
    """Measure every link of a scenario thoroughly; the rows are in the outcome's table `calibration`."""
    record = Record.create(name=f"{scenario.name}-calibration", scenario=scenario.dump(), out=options.out)
    with _recording(record), _devices(scenario, options, record, display) as (fleet, _):
        display.phase("calibrating links")
        rows = _calibrate(fleet, scenario, record, full=True)
        record.manifest({**describe_machine(), **fleet.facts(), "options": _plain(options)})
    verdicts = tuple(Verdict(bool(row["ok"]), probe.describe(row)) for row in rows)
    record.finish("ok" if all(verdict.met for verdict in verdicts) else "failed")
    identity = invoking_user()
    record.hand_over(identity.uid, identity.gid)
    return Outcome(record.folder, record.tables, verdicts)


def up(scenario: Scenario, options: Options, display: Display) -> RunState:
    """Make and shape a scenario's devices and leave them standing, for `exec`, until `down`."""
    with tempfile.TemporaryDirectory(prefix="testbed-up-") as scratch:
        record = Record.create(name=scenario.name, scenario=scenario.dump(), out=Path(scratch) / "record")
        with _devices(scenario, options, record, display, keep=True) as (fleet, state):
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


def check(scenario: Scenario) -> None:
    """Let the workload check its own configuration. Raises InputError with the faults that it printed."""
    command = scenario.workload.check
    if command is None:
        return
    identity = invoking_user()
    with _config_file(scenario) as config:
        surroundings = _local_environment(identity, config)
        try:
            checked = subprocess.run(
                list(command), env=surroundings, capture_output=True, text=True, **_as_user(identity)
            )
        except OSError as error:
            raise InputError([f"workload.check: must name a program, got {command[0]!r} ({error})"]) from error
    if checked.returncode != 0:
        said = [line for line in checked.stderr.splitlines() if line.strip()]
        raise InputError([line.replace(str(config), "workload.config") for line in said] or ["workload.check failed"])


def invoking_user() -> Identity:
    """The user on whose behalf we run: under sudo the one who called it, so that programs are not root."""
    uid = os.environ.get("SUDO_UID")
    if os.geteuid() != 0 or userns.inside() or not uid or uid == "0":
        return Identity()
    try:
        entry = pwd.getpwuid(int(uid))
    except (ValueError, KeyError) as error:
        raise InputError([f"SUDO_UID: must be a user of this machine, got {uid!r}; unset it to run as root"]) from error
    return Identity(uid=entry.pw_uid, gid=entry.pw_gid, home=entry.pw_dir)


def _as_user(identity: Identity) -> dict[str, Any]:
    """Arguments by which `subprocess` starts a program as that user, with that user's groups and no others."""
    if identity.uid is None or identity.gid is None:
        return {}
    groups = os.getgrouplist(pwd.getpwuid(identity.uid).pw_name, identity.gid)
    return {"user": identity.uid, "group": identity.gid, "extra_groups": groups}


@contextlib.contextmanager
def _recording(record: Record) -> Iterator[None]:
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
def _devices(
    scenario: Scenario, options: Options, record: Record, display: Display, *, keep: bool = False
) -> Iterator[tuple[Fleet, RunState]]:
    """Make a scenario's devices; remove them at the end, unless `keep` is set and the block ended well."""
    _check_cpus(scenario, options)
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
        with Fleet(scenario, runtime, record, display) as fleet:
            fleet.create()
            state = state.with_changes(agents=runtime.agents())
            yield fleet, state
            finished = True
    finally:
        if not (keep and finished):
            with _uninterrupted():
                runtime.remove()
                state.forget()


def _check_cpus(scenario: Scenario, options: Options) -> None:
    """Refuse devices that together have more CPUs than this machine: they would take them from one another."""
    if options.go_on or options.uncapped or options.runtime == "compose":
        return
    caps = [scenario.devices.spec(name).cpus or 0.0 for name in device_names(scenario.devices.count)]
    cores = len(os.sched_getaffinity(0))
    if sum(caps) > cores + CPUS_SLACK:
        raise UnsupportedError(
            f"devices.cpus: must add up to at most this machine's {cores} cores, got {sum(caps):g}; give the devices "
            "less (null sets no limit), or run with --go-on and do not believe the figures"
        )


def _check_events(scenario: Scenario, options: Options) -> None:
    """Refuse events that neither the runtime nor an agent can carry out."""
    able = RUNTIMES[options.runtime].acts | SIGNALS.keys()
    faults = [
        f"events[{number}].action: must be {' or '.join(sorted(able))} with --runtime {options.runtime}, got "
        f"{event.action!r}; only an engine starts a device again: use --runtime docker or netns"
        for number, event in enumerate(scenario.events)
        if event.device is not None and event.action not in able
    ]
    if faults:
        raise UnsupportedError("\n".join(faults))


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


def _prepare(scenario: Scenario, record: Record, display: Display, identity: Identity) -> None:
    """Run the workload's `prepare` once, here, before any device exists."""
    command = scenario.workload.prepare
    if command is None:
        return
    display.phase(f"preparing: {' '.join(command)}")
    with _config_file(scenario) as config:
        process = subprocess.Popen(
            list(command),
            env=_local_environment(identity, config),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            **_as_user(identity),
        )
        with process:
            try:
                for line in process.stdout or ():
                    record.log("prepare", line.rstrip("\n"))
                    display.say(f"  {line.rstrip()}")
            except BaseException:
                process.terminate()
                raise
    if process.returncode != 0:
        error = InputError if process.returncode == InputError.exit_code else TestbedError
        message = (
            f"workload.prepare: {' '.join(command)} ended with exit code {process.returncode}; see logs/prepare.log"
        )
        raise error([message]) if error is InputError else TestbedError(message)


@contextlib.contextmanager
def _config_file(scenario: Scenario) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="testbed-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)
        config = folder / "config.json"
        config.write_text(json.dumps(scenario.workload.config))
        yield config


def _local_environment(identity: Identity, config: Path) -> dict[str, str]:
    """Environment of a program that runs on the controller's own machine (check, prepare)."""
    return {**os.environ, **identity.environment(), "PATH": search_path(), "TESTBED_CONFIG": str(config)}


def _plain(options: Options) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}


def _calibrate(fleet: Fleet, scenario: Scenario, record: Record, *, full: bool) -> list[Row]:
    """Measure every link with the probe: speed without loss, then loss. The links are left shaped for neither."""
    rules = [rules_for(scenario, name, fleet.addresses()) for name in device_names(scenario.devices.count)]
    lossy = any(rule.loss != NO_LOSS for device in rules for rule in device.rules)
    fleet.shape(with_loss=False)
    _probe(fleet, probe.make_plan(rules, phase="speed", full=full))
    if lossy:
        fleet.shape()
        _probe(fleet, probe.make_plan(rules, phase="loss", full=full))
    return record.tables.get("calibration", [])


def _probe(fleet: Fleet, plan: probe.Plan) -> None:
    job = Job("the probe", probe.COMMAND, plan.model_dump(mode="json"), Path.cwd(), PROBE_TIMEOUT_S)
    fleet.execute(job, Identity())


def _report_calibration(rows: list[Row], display: Display, *, go_on: bool) -> None:
    """Say how true the links are. Raises CalibrationError if one is not, unless told to go on."""
    off = [probe.describe(row) for row in rows if not row["ok"]]
    if not off:
        display.say(f"calibrated: {len(rows)} measurements of the links, all within tolerance")
        return
    if not go_on:
        raise CalibrationError(
            "\n".join([*off, "other programs on this machine disturb the links; stop them, or run with --go-on"])
        )
    for line in off:
        display.say(f"out of tolerance: {line}")


def _record_links(fleet: Fleet, scenario: Scenario, record: Record) -> None:
    """Write what every link was asked for and what the kernel counted on it during the program."""
    for destination, links in fleet.counters().items():
        for source, count in links.items():
            asked = scenario.links.settings(source, destination).columns()
            record.row("links", {"source": source, "destination": destination, **asked, **count.model_dump()})
