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
from testbed.controller import Outcome
from testbed.display import Display, fitting_table
from testbed.errors import InputError, TestbedError
from testbed.keys import AGENT_FILE, CONTROLLER_FILE, make_control_keys
from testbed.options import Options
from testbed.record import Row
from testbed.render import compose_file
from testbed.replay import finished_run, not_compared
from testbed.runtimes import RUNTIMES, userns
from testbed.runtimes.state import RunState
from testbed.scenario import Scenario, json_schema, load
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
# A file or a pipe has no width; tables need more than the 80 columns that rich would assume there.
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)
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
        _need_network_namespaces(runtime)
        options = Options(_known_runtime(runtime), out, uncapped, calibrate, go_on, timeout_s)
        with Display(console, live=False if plain else None) as display:
            outcome = controller.run(loaded, options, display)
        suite.take(outcome.tables, outcome.verdicts)
    _show_outcome(loaded, outcome)
    _report_if_cheap(outcome.folder, runtime)
    raise typer.Exit(0 if outcome.ok else 1)


def _show_outcome(loaded: Scenario, outcome: Outcome) -> None:
    rows = outcome.tables.get("summary", [])
    if rows:
        title = f"{loaded.name}: {_describe_setting(loaded)}"
        console.print(fitting_table(rows, console, title=title))
    for verdict in outcome.verdicts:
        mark = "[green]met[/green]    " if verdict.met else "[red]not met[/red]"
        console.print(f"expected, {mark}  {escape(verdict.text)}", highlight=False, soft_wrap=True)
    console.print(f"results: {escape(str(outcome.folder))}", highlight=False, soft_wrap=True)


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="results of a run or a sweep, finished or not")],
    out: Annotated[Path | None, typer.Option("--out", help="file for the page; default DIR/report.html")] = None,
    charts: Annotated[
        Path | None, typer.Option("--charts", help="folder for the charts too, as SVG files of their own")
    ] = None,
) -> None:
    """Make one HTML page of a run or a sweep, with curves, where the time went, links, events; it needs no network."""
    console.print(f"report: {escape(str(report.write_report(folder, out)))}", highlight=False, soft_wrap=True)
    if charts is not None:
        count = len(report.write_charts(folder, charts))
        console.print(f"charts: {count} in {escape(str(charts))}", highlight=False, soft_wrap=True)


@app.command()
def replay(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="the results of a finished run")],
    out: Out = None,
    runtime: Annotated[str | None, typer.Option("--runtime", help="where devices live; default as in that run")] = None,
    plain: Plain = False,
) -> None:
    """Run a finished run again and compare: which packets were lost, what was sent and answered must be the same."""
    _need_network_namespaces(_known_runtime(runtime) if runtime else str(finished_run(folder)["runtime"]))
    with Display(console, live=False if plain else None) as display:
        outcome, differences = controller.replay(folder, display, out=out, runtime=runtime)
    for line in differences:
        console.print(f"[red]differs[/red]  {escape(line)}", highlight=False, soft_wrap=True)
    for line in not_compared(folder, outcome.folder):
        console.print(f"not compared  {escape(line)}", highlight=False, soft_wrap=True)
    if not differences:
        console.print("the same: packets lost by position, and all that the program reported but numbers")
    console.print(f"results: {escape(str(outcome.folder))}", highlight=False, soft_wrap=True)
    raise typer.Exit(1 if differences else 0)


@app.command()
def up(scenario: ScenarioFile, runtime: RuntimeName = "netns", uncapped: Uncapped = False) -> None:
    """Make and shape a scenario's devices and leave them standing, for `testbed exec`, until `testbed down`."""
    loaded = load(scenario)
    _need_network_namespaces(runtime)
    with Display(console) as display:
        state = controller.up(loaded, Options(_known_runtime(runtime), uncapped=uncapped), display)
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
    state = _find_run(run)
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
    states = RunState.load_all()
    chosen = [state for state in states if not names or state.run_id in names or state.name in names]
    unknown = set(names or ()) - {state.run_id for state in states} - {state.name for state in states}
    if unknown:
        known = ", ".join(f"{state.run_id} ({state.name})" for state in states) or "none"
        raise InputError([f"RUN: must be a run that is up, got {', '.join(sorted(unknown))!r}; up now: {known}"])
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
    _need_network_namespaces(runtime)
    options = Options(_known_runtime(runtime), out, uncapped)
    with Display(console, live=False if plain else None) as display:
        outcome = controller.calibrate(loaded, options, display)
    console.print(fitting_table(_one_row_a_link(outcome.tables.get("calibration", [])), console))
    console.print(
        "measured/asked, ! where out of tolerance; calibration.csv has every measurement with its tolerance",
        style="dim",
    )
    for verdict in outcome.verdicts:
        if not verdict.met:
            console.print(f"[red]out of tolerance[/red]  {escape(verdict.text)}", highlight=False)
    console.print(f"results: {escape(str(outcome.folder))}", highlight=False, soft_wrap=True)
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
            console.print(f"{escape(str(path))}: ok", highlight=False, soft_wrap=True)
        except InputError as error:
            faults += [fault if fault.startswith(str(path)) else f"{path}: {fault}" for fault in error.faults]
    if faults:
        raise InputError(faults)


@app.command()
def doctor() -> None:
    """Say what this machine can and cannot emulate, why, and the way out."""
    findings = examination.examine()
    for finding in findings:
        mark = "[green]yes[/green]" if finding.ok else "[red]no [/red]"
        console.print(
            f"{mark}  [bold]{escape(finding.name)}[/bold]  {escape(finding.detail)}",
            highlight=False,
            soft_wrap=True,
        )
        if not finding.ok:
            console.print(f"     → {escape(finding.way_out)}", highlight=False, soft_wrap=True)


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


def _report_if_cheap(folder: Path, runtime: str) -> None:
    """Write a run's report, or say how; what goes wrong with it changes nothing about the run.

    Compose stops this container as soon as a device has ended, so nothing may take time after that.
    """
    if runtime == "compose":
        said = f"report: testbed report {folder}"
    elif not report.is_cheap(folder):
        said = f"report: testbed report {folder}  (it has much to read)"
    else:
        try:
            said = f"report: {report.write_report(folder)}"
        except TestbedError as error:
            said = f"no report: {error}"
    console.print(escape(said), highlight=False, soft_wrap=True)


def _need_network_namespaces(runtime: str) -> None:
    if runtime == "netns" and userns.needed():
        userns.enter()


def _known_runtime(name: str) -> str:
    if name not in RUNTIMES:
        raise InputError([f"--runtime: must be one of {', '.join(RUNTIMES)}, got {name!r}"])
    return name


def _find_run(name: str | None) -> RunState:
    states = [state for state in RunState.load_all() if not name or name in (state.run_id, state.name)]
    if len(states) == 1:
        return states[0]
    known = ", ".join(f"{state.run_id} ({state.name})" for state in RunState.load_all()) or "none"
    raise InputError([f"--run: must name one run that is up, got {name!r}; up now: {known}"])


def _one_row_a_link(measured: list[Row]) -> list[Row]:
    """Turn one row a measurement into one a link, with what was measured and asked side by side."""
    links: dict[str, Row] = {}
    for row in sorted(measured, key=lambda row: (str(row["source"]), str(row["destination"]))):
        link = f"{row['source']}→{row['destination']}"
        metric = str(row["metric"]).removeprefix("message_")
        digits = 2 if metric.endswith("_ms") and float(row["measured"] or 0) < 10 else 3
        asked = "–" if row["asked"] is None else f"{row['asked']:.{digits}g}"
        text = f"{row['measured']:.{digits}g}/{asked}" + ("" if row["ok"] else "!")
        links.setdefault(link, {"link": link})[metric] = text
    return list(links.values())


def _describe_setting(scenario: Scenario) -> str:
    """Say in a line on what devices and links the figures below were measured."""
    devices, links = scenario.devices, scenario.links.default
    cpus = "uncapped" if devices.cpus is None else f"{devices.cpus:g} CPU each"
    rate = "unshaped links" if links.rate_mbps is None else f"{links.rate_mbps:g} Mbps a link"
    delay = f", {links.delay_ms:g} ms delay" if links.delay_ms else ""
    return f"{devices.count} devices, {cpus}, {rate}{delay}, {links.loss_pct:g} % loss"


if __name__ == "__main__":
    main()
