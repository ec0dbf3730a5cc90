"""`testbed status`: what is running or was left behind on this machine, once or as it goes on.

    RunState.load_all --> one row a run, one a device            (once)
                      └─> Watcher a run --> tables or lines, until no run is left or Ctrl-C   (`--watch`)

Looks and changes nothing. Prints on the console that it is given.
"""

import contextlib
import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from testbed.display import OWN_LINES, REFRESHES_PER_S, Value, table_of
from testbed.errors import InputError
from testbed.live_sample import Snapshot, Watcher
from testbed.live_view import line_of, picture
from testbed.runtimes.state import RunState

__all__ = ["describe_run", "named_run", "named_runs", "show", "watch"]

LINE_PERIOD_S = 2.0
"""Of plain lines, where anything has changed."""


def describe_run(state: RunState) -> dict[str, Value]:
    """Return a run's row."""
    return {
        "run": state.run_id,
        "name": state.name,
        "runtime": state.runtime,
        "devices": len(state.devices),
        "state": _how(state),
    }


def named_runs(names: Sequence[str]) -> list[RunState]:
    """Return the runs that have these ids or names, or all without any. Raises InputError for one that is not up."""
    states = RunState.load_all()
    unknown = set(names) - {state.run_id for state in states} - {state.name for state in states}
    if unknown:
        got = ", ".join(sorted(unknown))
        raise InputError([f"RUN: must be a run that is up, got {got!r}; up now: {_names(states)}"])
    return [state for state in states if not names or state.run_id in names or state.name in names]


def named_run(name: str | None) -> RunState:
    """Return the one run that has this id or name, or that is up at all. Raises InputError if there is not one."""
    states = RunState.load_all()
    named = [state for state in states if not name or name in (state.run_id, state.name)]
    if len(named) != 1:
        raise InputError([f"--run: must name one run that is up, got {name!r}; up now: {_names(states)}"])
    return named[0]


def _names(states: Sequence[RunState]) -> str:
    return ", ".join(f"{state.run_id} ({state.name})" for state in states) or "none"


def show(console: Console, states: list[RunState]) -> None:
    """Print runs and their devices."""
    if not states:
        console.print("nothing is up")
    for state in states:
        console.print(table_of([describe_run(state)]))
        rows: list[dict[str, Value]] = [
            {"device": device, "address": state.addresses.get(device), "agent": _describe_agent(state, device)}
            for device in state.devices
        ]
        console.print(table_of(rows))


def watch(console: Console, *, live: bool, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show all runs as they go on, until none is left or somebody presses Ctrl-C."""
    with contextlib.closing(_Watch(console)) as watched, contextlib.suppress(KeyboardInterrupt):
        if live:
            _watch_live(console, watched, sleep)
        else:
            _watch_in_lines(console, watched, sleep)
        console.print("nothing is up")


def _watch_live(console: Console, watched: "_Watch", sleep: Callable[[float], None]) -> None:
    with Live(console=console, auto_refresh=False, transient=True) as screen:
        while watched.look():
            screen.update(watched.picture(), refresh=True)
            sleep(1 / REFRESHES_PER_S)


def _watch_in_lines(console: Console, watched: "_Watch", sleep: Callable[[float], None]) -> None:
    said: dict[str, str] = {}
    started = time.monotonic()
    while watched.look():
        now = watched.lines()
        for run_id, line in now.items():
            if said.get(run_id) != line:
                elapsed = f"{time.monotonic() - started:6.1f} s"
                console.print(f"{elapsed}  {line}", highlight=False, markup=False, soft_wrap=True)
        said = now
        sleep(LINE_PERIOD_S)


class _Watch:
    """The runs of this machine, each with what was last seen of it."""

    def __init__(self, console: Console):
        self._console = console
        self._watchers: dict[str, Watcher] = {}
        self._seen: list[tuple[RunState, Snapshot]] = []

    def look(self) -> bool:
        """Look at every run; return whether there is any."""
        states = RunState.load_all()
        for gone in self._watchers.keys() - {state.run_id for state in states}:
            self._watchers.pop(gone).close()
        self._seen = []
        for state in states:
            watcher = self._watchers.setdefault(state.run_id, Watcher(state.run_id))
            self._seen.append((state, watcher.sample() or Snapshot()))
        return bool(states)

    def picture(self) -> RenderableType:
        """Compose what a terminal shows; runs share its height."""
        width, height = self._console.size
        share = (height - OWN_LINES) // len(self._seen) - 2
        parts: list[RenderableType] = []
        for state, snapshot in self._seen:
            parts += [Text(""), _heading(state)] if parts else [_heading(state)]
            parts.append(picture(snapshot, width=width, height=share))
        return Group(*parts)

    def lines(self) -> dict[str, str]:
        """Say in a line each how the runs are, by run."""
        return {state.run_id: f"{_heading(state)}: {line_of(snapshot)}" for state, snapshot in self._seen}

    def close(self) -> None:
        """Let go of all devices."""
        for watcher in self._watchers.values():
            watcher.close()


def _heading(state: RunState) -> Text:
    return Text(f"{state.run_id}  {state.name} ({state.runtime}), {_how(state)}", "bold", no_wrap=True)


def _how(state: RunState) -> str:
    return "left behind" if state.abandoned() else "up" if state.held else "running"


def _describe_agent(state: RunState, device: str) -> str:
    agent = state.agents.get(device)
    if agent is None:
        return "not started"
    return f"alive ({agent.pid})" if agent.alive() else "gone"
