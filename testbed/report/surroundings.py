"""What a run ran on, how to run it again, and what else it left."""

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from testbed.report.folder import RunFolder
from testbed.report.model import Fact, Section, Table, table

__all__ = ["again", "command_of", "environment", "flattened", "others", "setting", "started", "when"]

SHOWN_ELSEWHERE = frozenset({"summary", "calibration", "events", "links", "traces"})
OPTION_FLAGS = {"uncapped": "--uncapped", "go_on": "--go-on"}
MOST_LOG_CHARACTERS = 4000


def setting(scenario: Mapping[str, Any]) -> str:
    """Say in a line on what devices and links a run was."""
    devices, links = scenario.get("devices") or {}, (scenario.get("links") or {}).get("default") or {}
    parts = [f"{devices['count']} devices"] if "count" in devices else []
    cpus, rate = devices.get("cpus"), links.get("rate_mbps")
    parts += [] if not devices else [f"{cpus:g} CPU each" if isinstance(cpus, int | float) else "CPU uncapped"]
    parts += [] if not links else [f"{rate:g} Mbps a link" if isinstance(rate, int | float) else "unshaped links"]
    parts += [f"{links['delay_ms']:g} ms delay"] if links.get("delay_ms") else []
    parts += [f"{links['loss_pct']:g} % loss"] if "loss_pct" in links else []
    parts += ["some links differ"] if (scenario.get("links") or {}).get("overrides") else []
    return ", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)


def when(run: RunFolder) -> str:
    """Say when a run was, and for how long."""
    duration_s = run.summary.get("duration_s")
    took = f", {duration_s:,.0f} s" if isinstance(duration_s, int | float) and run.status != "running" else ""
    return f"{started(run)}{took}" if started(run) else ""


def started(run: RunFolder) -> str:
    """Say when a run began; nothing if it does not know."""
    return str(run.summary.get("started_utc") or "").replace("T", " ").replace("+00:00", " UTC")


def command_of(run: RunFolder) -> str | None:
    """Return the command that runs the scenario once more; None without a scenario."""
    path = run.path / "scenario.yaml"
    return shlex.join(["testbed", "run", *_options(run), str(path)]) if path.exists() else None


def environment(run: RunFolder) -> Section:
    """Return versions, machine and mechanism."""
    if not run.manifest:
        return Section("environment", "Environment", missing=(run.why_missing("manifest.json"),))
    shown = {name: value for name, value in run.manifest.items() if name not in ("command", "options")}
    facts = tuple(Fact(name, "–" if value is None else str(value)) for name, value in flattened(shown))
    return Section("environment", "Environment", facts=facts)


def again(run: RunFolder) -> Section:
    """Return the commands that run it once more, and the scenario."""
    missing, commands, listing = [], [], []
    path = run.path / "scenario.yaml"
    command = command_of(run)
    if command is not None:
        commands.append(command)
        listing.append(("scenario.yaml, resolved", path.read_text(errors="replace")))
    else:
        missing.append(run.why_missing("scenario.yaml"))
    if run.status == "ok":
        commands.append(shlex.join(["testbed", "replay", str(run.path)]))
    typed = run.manifest.get("command")
    if isinstance(typed, list):
        listing.append(("The command of this run", shlex.join(map(str, typed))))
    lead = "The scenario is complete: recordings are in it. The replay also compares packets lost, codes and answers."
    return Section(
        "again",
        "Run it again",
        lead if commands else "",
        tuple(missing),
        commands=tuple(commands),
        listing=tuple(listing),
    )


def others(run: RunFolder) -> Section:
    """Return what else the folder holds: tables of the program, ends of logs, names of files."""
    tables: list[Table] = [
        table(f"{name}.csv", rows, folded=True, source=f"{name}.csv")
        for name, rows in run.tables.items()
        if name not in SHOWN_ELSEWHERE
    ]
    listing = []
    for path in sorted((run.path / "logs").glob("*.log")):
        text = path.read_text(errors="replace")
        end = text if len(text) <= MOST_LOG_CHARACTERS else "…" + text[-MOST_LOG_CHARACTERS:]
        listing.append((f"logs/{path.name}", end))
    files = sorted(str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file())
    listing.append(("Files of the run folder", "\n".join(files)))
    unreadable = tuple(run.why_missing(name) for name in run.unreadable)
    return Section("rest", "What else", missing=unreadable, tables=tuple(tables), listing=tuple(listing))


def flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a tree by dotted path; lists are leaves."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _options(run: RunFolder) -> list[str]:
    """Return the options with which the run was started, as far as they matter for its result."""
    options = run.manifest.get("options") or {}
    flags = ["--runtime", str(options["runtime"])] if options.get("runtime", "netns") != "netns" else []
    flags += [flag for name, flag in OPTION_FLAGS.items() if options.get(name)]
    flags += ["--no-calibrate"] if options.get("calibrate") is False else []
    flags += ["--timeout-s", f"{options['timeout_s']:g}"] if options.get("timeout_s") else []
    return flags
