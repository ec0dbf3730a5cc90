"""The report of several runs: a sweep's folder, or any folder that holds run folders.

    run folders --setting_axes--> what differs between their scenarios, by dotted path
                --points--------> (settings, label) -> median, spread, speed-up, over repetitions
                ----------------> curves over one axis, a chart for each setting of the others

Nothing has to say that the runs belong together: what was varied is what their resolved scenarios differ in.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.record import Row
from testbed.report import curves, network, outcome, surroundings
from testbed.report.axes import Setting, Value, setting_axes
from testbed.report.folder import RunFolder
from testbed.report.model import Fact, Report, Section, Verdict, table
from testbed.report.rows import numbers

__all__ = ["report_of_runs"]


@dataclass(frozen=True)
class Runs:
    """Runs with what differs between them."""

    folder: Path
    runs: tuple[RunFolder, ...]
    axes: tuple[str, ...]
    settings: tuple[Setting, ...]
    """Of each run: its value on every axis."""


def report_of_runs(folder: Path, found: Sequence[RunFolder]) -> Report:
    """Put together what runs have to say as one."""
    sweep = _description(folder)
    axes, settings = setting_axes([run.scenario for run in found], sweep.get("axes", ()))
    ordered = sorted(zip(settings, found, strict=True), key=lambda pair: [_rank(value) for value in pair[0].values()])
    runs = Runs(folder, tuple(run for _, run in ordered), axes, tuple(setting for setting, _ in ordered))
    ended = [run.status for run in found]
    good = ended.count("ok")
    return Report(
        title=str(sweep.get("name") or folder.resolve().name),
        setting=f"{len(found)} runs; what differs: {', '.join(axes) or 'nothing'}",
        status="ok" if good == len(found) else "failed" if "failed" in ended else "interrupted",
        when=_when(found),
        error="",
        facts=_headline(runs, sweep),
        verdicts=_verdicts(runs),
        sections=(
            _summary(runs),
            *curves.sections(list(zip(runs.settings, runs.runs, strict=True)), axes),
            _traffic(runs),
            _calibration(runs),
            _events(runs),
            _environment(runs),
            _again(runs),
        ),
    )


def _headline(runs: Runs, sweep: Mapping[str, Any]) -> tuple[Fact, ...]:
    planned = int(sweep.get("num_cells") or 0) * int(sweep.get("repeat") or 1)
    ended = [run for run in runs.runs if run.status == "ok"]
    facts = [Fact("runs that ended well", f"{len(ended)} of {max(planned, len(runs.runs))}")]
    checked = [row for run in runs.runs for row in run.rows("calibration")]
    if checked:
        good = sum(row.get("ok") is True for row in checked)
        facts.append(Fact("links true", f"{good} of {len(checked)}", "measurements within tolerance"))
    best = [
        (gain, label, _named(setting))
        for setting, run in zip(runs.settings, runs.runs, strict=True)
        for label, row in outcome.by_label(run).items()
        for gain in numbers([row], outcome.SPEEDUP)
        if gain != 1.0  # one device over itself
    ]
    if best:
        gain, label, where = max(best)
        facts.append(Fact("best over one device", f"{gain:.2f}×", f"{label}; {where}"))
    return tuple(facts)


def _verdicts(runs: Runs) -> tuple[Verdict, ...]:
    """Return what did not come true, and where."""
    return tuple(
        Verdict(verdict.met, f"{_named(setting)}: {verdict.text}")
        for setting, run in zip(runs.settings, runs.runs, strict=True)
        for verdict in outcome.verdicts(run)
        if not verdict.met
    )


def _summary(runs: Runs) -> Section:
    """Return all summaries as one table, and the runs that have none."""
    rows: list[Row] = []
    missing = []
    for setting, run in zip(runs.settings, runs.runs, strict=True):
        own = run.rows("summary")
        rows += [{**setting, **row} for row in own]
        if not own or run.status != "ok":
            why = run.summary.get("error") or (
                run.why_missing("summary.csv") if not own else "an expectation was not met"
            )
            missing.append(f"{run.path.relative_to(runs.folder)}, {run.status}: {why}")
    tables = (table("All runs", rows, source="summary.csv of each run"),) if rows else ()
    return Section("summary", "Summary", "", tuple(missing), tables=tables)


def _traffic(runs: Runs) -> Section:
    """Return bytes asked and counted of every run."""
    names = ("bytes_per_request_predicted", "bytes_per_request_expected", "bytes_per_request_counted")
    rows: list[Row] = []
    for setting, run in zip(runs.settings, runs.runs, strict=True):
        for label, row in outcome.by_label(run).items():
            asked, counted = row.get(names[1]), row.get(names[2])
            if isinstance(asked, int | float) and isinstance(counted, int | float):
                share = {"counted_over_expected": round(counted / asked, 4)} if asked else {}
                rows.append({**setting, "label": label, **{name: row.get(name) for name in names}, **share})
    title = "Traffic"
    if not rows:
        return Section("traffic", title, missing=("No summary.csv has the columns bytes_per_request_….",))
    return Section(
        "traffic", title, tables=(table("Bytes a request, all links together", rows, folded=len(rows) > 16),)
    )


def _calibration(runs: Runs) -> Section:
    """Return how true the links of all runs were."""
    rows = [
        {**setting, **row}
        for setting, run in zip(runs.settings, runs.runs, strict=True)
        for row in run.rows("calibration")
    ]
    if not rows:
        return Section("calibration", network.CALIBRATION, missing=(runs.runs[0].why_missing("calibration.csv"),))
    return network.calibration_of(rows, "calibration.csv of each run")


def _events(runs: Runs) -> Section:
    """Say where events and rates over time are to be seen."""
    count = sum(len(run.rows("events")) for run in runs.runs)
    text = f"The runs had {count} changes; each run's own report draws them: testbed report RUN_DIR."
    return Section("events", "Events", missing=(text if count else "No run had events.",))


def _environment(runs: Runs) -> Section:
    """Return the environment of the first run, and in what others differ from it."""
    with_facts = [run for run in runs.runs if run.manifest]
    if not with_facts:
        return surroundings.environment(runs.runs[0])
    section = surroundings.environment(with_facts[0])
    values: dict[str, set[str]] = {}
    for run in with_facts:
        for fact in surroundings.environment(run).facts:
            values.setdefault(fact.name, set()).add(fact.value)
    differing = {name: sorted(found) for name, found in values.items() if len(found) > 1 and name != "utc"}
    facts = tuple(
        Fact(fact.name, " | ".join(differing[fact.name]) if fact.name in differing else fact.value)
        for fact in section.facts
    )
    lead = f"Differs between runs: {', '.join(differing)}." if differing else "The same in all runs but for the time."
    return Section(section.key, section.title, lead, facts=facts)


def _again(runs: Runs) -> Section:
    """Return the command of every run."""
    commands = {}
    for setting, run in zip(runs.settings, runs.runs, strict=True):
        command = surroundings.command_of(run)
        commands.update({f"{_named(setting)} ({run.path.name})": command} if command else {})
    text = "\n\n".join(f"# {name}\n{command}" for name, command in commands.items())
    first = tuple(commands.values())[:1]
    typed = runs.runs[0].manifest.get("command")
    if isinstance(typed, list) and "sweep" in typed:
        first = (shlex.join(["testbed", *map(str, typed[1:])]),)
    return Section("again", "Run it again", commands=first, listing=(("Every run by itself", text),))


def _rank(value: Value) -> tuple[bool, float, str]:
    """Order numbers by size, and text after them."""
    return (False, float(value), "") if isinstance(value, int | float) else (True, 0.0, str(value))


def _named(setting: Setting) -> str:
    return (
        ", ".join(
            f"{name.rpartition('.')[2]} {value:g}" if isinstance(value, float) else f"{name.rpartition('.')[2]} {value}"
            for name, value in setting.items()
        )
        or "as is"
    )


def _when(runs: Sequence[RunFolder]) -> str:
    starts = sorted(filter(None, (surroundings.started(run) for run in runs)))
    return f"{starts[0]} to {starts[-1]}" if len(starts) > 1 else "".join(starts)


def _description(folder: Path) -> dict[str, Any]:
    """Read what a sweep says of itself; nothing where the folder is no sweep's."""
    try:
        found = json.loads((folder / "sweep.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
