"""The `testbed` command. Alone in this package, it prints and exits.

Exit codes: 0 success, 1 the run failed or an expectation was not met, 2 bad input or this machine cannot do it.
"""

import json
import os
import signal
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from testbed import controller, junit, report, status, workload
from testbed import doctor as examination
from testbed.display import Display
from testbed.errors import InputError, TestbedError
from testbed.keys import AGENT_FILE, CONTROLLER_FILE, make_control_keys
from testbed.options import Options
from testbed.printing import (
    console,
    say,
    say_report,
    show_calibration,
    show_comparison,
    show_findings,
    show_outcome,
)
from testbed.render import compose_file
from testbed.replay import finished_run, not_compared
from testbed.runtimes import RUNTIMES, userns
from testbed.runtimes.state import RunState
from testbed.scenario import json_schema, load
from testbed.sweep.cells import is_sweep
from testbed.sweep.cells import load as load_sweep
from testbed.sweep.command import app as sweep_app
from testbed.sweep.running import check_cells

app = typer.Typer(
    help="Run programs on several isolated devices joined by shaped, lossy links.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(sweep_app, name="sweep")
errors = Console(stderr=True)

ScenarioFile = Annotated[Path, typer.Argument(metavar="SCENARIO.yaml", help="the scenario")]
Out = Annotated[Path | None, typer.Option("--out", help="folder for the results; default results/<name>-<utc>")]
RuntimeName = Annotated[str, typer.Option("--runtime", help=f"where devices live: {', '.join(RUNTIMES)}")]
Uncapped = Annotated[bool, typer.Option("--uncapped", help="run without CPU and memory limits where none can be set")]
Plain = Annotated[bool, typer.Option("--plain", help="plain lines instead of a live display")]
RunName = Annotated[str | None, typer.Option("--run", help="run id or scenario name, if several are up")]


@app.command()
def run(
    scenario: ScenarioFile,
    out: Out = None,
    runtime: RuntimeName = "netns",
    uncapped: Uncapped = False,
    plain: Plain = False,
    calibrate: Annotated[bool, typer.Option(help="measure the links first")] = True,
    go_on: Annotated[bool, typer.Option("--go-on", help="run on untrue links, or on more CPUs than there are")] = False,
    timeout_s: Annotated[
        float | None, typer.Option(min=0.1, help="give up on the program after so many seconds")
    ] = None,
    junit_file: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE.xml", help="write how it ended for a CI server, as tests")
    ] = None,
    end_with_stdin: Annotated[
        bool, typer.Option("--end-with-stdin", help="end when standard input does: for programs that start this one")
    ] = False,
) -> None:
    """Run a scenario: make its devices, shape and calibrate the links, run the program, report."""
    if end_with_stdin:
        threading.Thread(target=_interrupt_at_end_of_stdin, daemon=True).start()
    with junit.kept(junit_file, scenario.stem) as suite:
        loaded = load(scenario)
        suite.name = loaded.name
        options = Options(_ready(runtime), out, uncapped, calibrate, go_on, timeout_s)
        with Display(console, live=False if plain else None) as display:
            outcome = controller.run(loaded, options, display)
        suite.take(outcome.tables, outcome.verdicts)
    show_outcome(loaded, outcome)
    say_report(outcome.folder, runtime)
    raise typer.Exit(0 if outcome.ok else 1)


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="results of a run or a sweep, finished or not")],
    out: Annotated[Path | None, typer.Option("--out", help="file for the page; default DIR/report.html")] = None,
    charts: Annotated[
        Path | None, typer.Option("--charts", help="folder for the charts too, as SVG files of their own")
    ] = None,
) -> None:
    """Make one HTML page of a run or a sweep, with curves, where the time went, links, events; it needs no network."""
    say(f"report: {escape(str(report.write_report(folder, out)))}")
    if charts is not None:
        count = len(report.write_charts(folder, charts))
        say(f"charts: {count} in {escape(str(charts))}")


@app.command()
def replay(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="the results of a finished run")],
    out: Out = None,
    runtime: Annotated[str | None, typer.Option("--runtime", help="where devices live; default as in that run")] = None,
    plain: Plain = False,
) -> None:
    """Run a finished run again and compare: which packets were lost, what was sent and answered must be the same."""
    _ready(runtime or str(finished_run(folder)["runtime"]))
    with Display(console, live=False if plain else None) as display:
        outcome, differences = controller.replay(folder, display, out=out, runtime=runtime)
    show_comparison(outcome, differences, not_compared(folder, outcome.folder))
    raise typer.Exit(1 if differences else 0)


@app.command()
def up(scenario: ScenarioFile, runtime: RuntimeName = "netns", uncapped: Uncapped = False) -> None:
    """Make and shape a scenario's devices and leave them standing, for `testbed exec`, until `testbed down`."""
    loaded = load(scenario)
    options = Options(_ready(runtime), uncapped=uncapped)
    with Display(console) as display:
        state = controller.up(loaded, options, display)
    for device, address in state.addresses.items():
        console.print(f"{device}  {address}", highlight=False)
    console.print(
        f"up as {state.run_id}; try: testbed exec {state.devices[0]} -- ping -c 3 {state.addresses[state.devices[-1]]}"
    )


@app.command()
def keys(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder of the key files; made if needed")],
) -> None:
    """Make the keys of a controller and of its agents, for machines that share no folder (images/stack.yml)."""
    folder.mkdir(parents=True, exist_ok=True)
    for side, name in zip(make_control_keys(), (CONTROLLER_FILE, AGENT_FILE), strict=True):
        side.write(folder / name)
    console.print(f"{escape(str(folder))}: {CONTROLLER_FILE} and {AGENT_FILE}", highlight=False)


@app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def execute(
    device: Annotated[str, typer.Argument(help="a device that is up, such as d0")],
    command: Annotated[list[str], typer.Argument(help="the command and its arguments")],
    run: RunName = None,
) -> None:
    """Run a command inside a device that `testbed up` made, with the device's links and limits."""
    state = status.named_run(run)
    if device not in state.devices:
        raise InputError([f"DEVICE: must be one of {', '.join(state.devices)}, got {device!r}; see testbed status"])
    line = RUNTIMES[state.runtime](state).enter(device, command[1:] if command[0] == "--" else command)
    os.execvp(line[0], line)  # noqa: S606  (the command takes this process's place and exit code)


@app.command("status")
def status_command(
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="devices and links as they go on, until none is left")] = False,
    plain: Plain = False,
) -> None:
    """List what is running or was left behind on this machine."""
    if as_json and watch:
        raise InputError(["--json: must be given without --watch, got both; ask for --watch --plain"])
    if watch:
        status.watch(console, live=console.is_terminal and not plain)
    elif as_json:
        described = [status.describe_run(state) for state in RunState.load_all()]
        sys.stdout.write(json.dumps(described, indent=1) + "\n")
    else:
        status.show(console, RunState.load_all())


@app.command()
def down(
    names: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="run ids or names; default all")] = None,
) -> None:
    """Remove devices: those named, or all that are up, run or were left behind."""
    chosen = status.named_runs(names or ())
    for state in chosen:
        controller.down(state)
        console.print(f"removed {state.run_id} ({state.name})", highlight=False)
    if not chosen:
        console.print("nothing to remove")


@app.command()
def calibrate(
    scenario: ScenarioFile,
    out: Out = None,
    runtime: RuntimeName = "netns",
    uncapped: Uncapped = False,
    plain: Plain = False,
) -> None:
    """Measure every link of a scenario: rate, message times, round trip and loss, asked against got."""
    loaded = load(scenario)
    options = Options(_ready(runtime), out, uncapped)
    with Display(console, live=False if plain else None) as display:
        outcome = controller.calibrate(loaded, options, display)
    show_calibration(outcome)
    raise typer.Exit(0 if outcome.ok else 1)


@app.command()
def render(scenario: ScenarioFile) -> None:
    """Print the Compose file that runs a scenario: testbed render S.yaml | docker compose -f - up."""
    sys.stdout.write(compose_file(load(scenario)))


@app.command()
def validate(
    scenarios: Annotated[list[Path] | None, typer.Argument(metavar="[SCENARIO.yaml | SWEEP.yaml]...")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="write the JSON Schema of scenario files")] = False,
) -> None:
    """Check scenarios, also those of every cell of a sweep, and let each workload check its own part."""
    if schema:
        sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")
        return
    if not scenarios:
        raise InputError(["SCENARIO.yaml: must be at least one file, got none; or ask for --schema"])
    faults: list[str] = []
    for path in scenarios:
        try:
            if is_sweep(path):
                check_cells(load_sweep(path).cells, Options(go_on=True))
            else:
                workload.check(load(path))
            say(f"{escape(str(path))}: ok")
        except InputError as error:
            faults += [fault if fault.startswith(str(path)) else f"{path}: {fault}" for fault in error.faults]
    if faults:
        raise InputError(faults)


@app.command()
def doctor() -> None:
    """Say what this machine can and cannot emulate, why, and the way out."""
    show_findings(examination.examine())


@app.callback(invoke_without_command=True)
def _version(show: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    if show:
        console.print(version("astra-testbed"), highlight=False)
        raise typer.Exit


def main() -> None:
    """Run the command line; every failure becomes one message and an exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    try:
        app()
    except TestbedError as error:
        errors.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _interrupt_at_end_of_stdin() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _ready(runtime: str) -> str:
    """Return the name of a runtime that there is, once this process may use it; for `netns` it starts itself again."""
    if runtime not in RUNTIMES:
        raise InputError([f"--runtime: must be one of {', '.join(RUNTIMES)}, got {runtime!r}"])
    if runtime == "netns" and userns.needed():
        userns.enter()
    return runtime


if __name__ == "__main__":
    main()
