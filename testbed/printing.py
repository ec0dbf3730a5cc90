"""What the commands print: how a run ended, what it differs in from another, how true its links are, what is possible.

Outcome, Finding --show_...--> tables and lines on the terminal, or in a file or a pipe
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from testbed import report
from testbed.controller import Outcome
from testbed.display import fitting_table
from testbed.doctor import Finding
from testbed.errors import TestbedError
from testbed.record import Row
from testbed.scenario import Scenario

__all__ = [
    "console",
    "say",
    "say_report",
    "say_results",
    "show_calibration",
    "show_comparison",
    "show_findings",
    "show_outcome",
]

# A file or a pipe has no width; tables need more than the 80 columns that rich would assume there.
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)


def say(line: str) -> None:
    """Print a line as it is, but for its markup, however long it is."""
    console.print(line, highlight=False, soft_wrap=True)


def say_results(folder: Path) -> None:
    """Print where the results are."""
    say(f"results: {escape(str(folder))}")


def say_report(folder: Path, runtime: str) -> None:
    """Write a run's report if that is cheap, or say how; what goes wrong with it changes nothing about the run.

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
    say(escape(said))


def show_outcome(loaded: Scenario, outcome: Outcome) -> None:
    """Print the summary, the expectations, and where the results are."""
    rows = outcome.tables.get("summary", [])
    if rows:
        title = f"{loaded.name}: {_describe_setting(loaded)}"
        console.print(fitting_table(rows, console, title=title))
    for verdict in outcome.verdicts:
        mark = "[green]met[/green]    " if verdict.met else "[red]not met[/red]"
        say(f"expected, {mark}  {escape(verdict.text)}")
    say_results(outcome.folder)


def show_calibration(outcome: Outcome) -> None:
    """Print what was measured of every link, what is out of tolerance, and where the results are."""
    console.print(fitting_table(_one_row_a_link(outcome.tables.get("calibration", [])), console))
    console.print(
        "measured/asked, ! where out of tolerance; calibration.csv has every measurement with its tolerance",
        style="dim",
    )
    for verdict in outcome.verdicts:
        if not verdict.met:
            console.print(f"[red]out of tolerance[/red]  {escape(verdict.text)}", highlight=False)
    say_results(outcome.folder)


def show_comparison(outcome: Outcome, differences: Sequence[str], not_compared: Sequence[str]) -> None:
    """Print in what a run differs from an earlier one, what could not be compared, and where the results are."""
    for line in differences:
        say(f"[red]differs[/red]  {escape(line)}")
    for line in not_compared:
        say(f"not compared  {escape(line)}")
    if not differences:
        console.print("the same: packets lost by position, and all that the program reported but numbers")
    say_results(outcome.folder)


def show_findings(findings: Sequence[Finding]) -> None:
    """Print what this machine can and cannot do, and the ways out."""
    for finding in findings:
        mark = "[green]yes[/green]" if finding.ok else "[red]no [/red]"
        say(f"{mark}  [bold]{escape(finding.name)}[/bold]  {escape(finding.detail)}")
        if not finding.ok:
            say(f"     → {escape(finding.way_out)}")


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
