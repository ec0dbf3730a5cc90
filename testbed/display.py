"""What a person sees while a scenario runs, and the table at the end.

A terminal gets a live line with a spinner, the phase and a progress bar, and below it devices and links while there are
any (`live_view.py`); anything else gets plain lines, one a phase and at most one a tenth of the way. Columns are
formatted by the unit at the end of their name.
"""

import contextlib
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from testbed.live_sample import Snapshot, Watcher
from testbed.live_view import picture

__all__ = ["Display", "fitting_table", "format_value", "heading", "table_of"]

_GAP = "\N{NO-BREAK SPACE}"
"""Between a number and its unit, so that no table breaks them apart."""

REFRESHES_PER_S = 2.0
"""More would be nicer to look at, and would cost the machine that is measured."""
LOOKING_SHARE = 0.01
"""Of a core, at most, for looking at the machine: many devices are looked at less often."""
OWN_LINES = 2
"""Of the terminal's height: the progress line, and the one on which the cursor stands."""

Value = str | int | float | bool | None


class Display:
    """Live progress of one run on a console."""

    def __init__(self, console: Console, *, live: bool | None = None):
        self.console = console
        self._live = console.is_terminal if live is None else live
        self._started = time.monotonic()
        self._tenth = ("", -1)
        what, count = TextColumn("{task.description}"), TextColumn("{task.fields[count]}")
        columns = (SpinnerColumn(), what, BarColumn(bar_width=24), count, TimeElapsedColumn())
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task("starting", total=None, count="")
        self._looking = threading.Lock()
        self._watcher: Watcher | None = None
        self._seen = Snapshot()
        self._look_at = 0.0
        self._screen = Live(
            console=console, get_renderable=self._picture, transient=True, refresh_per_second=REFRESHES_PER_S
        )

    def __enter__(self) -> "Display":
        if self._live:
            self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.stop()

    @contextlib.contextmanager
    def watching(self, run_id: str, states: Callable[[], Mapping[str, str]]) -> Iterator[None]:
        """Show a run's devices and links meanwhile, if live; `states` says what each device is doing."""
        watcher = Watcher(run_id, states)
        self._watcher, self._seen, self._look_at = watcher if self._live else None, Snapshot(), 0.0
        try:
            yield
        finally:
            with self._looking:
                self._watcher = None
                watcher.close()

    def _picture(self) -> RenderableType:
        """Compose what a terminal shows; the machine is looked at no more often than the screen is refreshed."""
        width, height = self.console.size
        with self._looking:
            if self._watcher is None:
                return self._progress
            if time.monotonic() >= self._look_at:
                began_s = time.thread_time()
                self._seen = self._watcher.sample() or Snapshot()
                pause_s = max(1 / REFRESHES_PER_S, (time.thread_time() - began_s) / LOOKING_SHARE)
                self._look_at = time.monotonic() + pause_s
        return Group(self._progress, picture(self._seen, width=width, height=height - OWN_LINES))

    def phase(self, text: str) -> None:
        """Say what begins now."""
        self._progress.remove_task(self._task)  # a task that has had a total cannot lose it again
        self._task = self._progress.add_task(escape(text), total=None, count="")
        self.say(text)

    def say(self, text: str) -> None:
        """Print a line above the live display."""
        elapsed = time.monotonic() - self._started
        self.console.print(f"[dim]{elapsed:6.1f} s[/dim]  {escape(text)}", highlight=False)

    def progress(self, label: str, done: int, total: int) -> None:
        """Say how far the program is."""
        self._progress.update(
            self._task, description=escape(label), completed=done, total=total, count=f"{done}/{total}"
        )
        tenth = (label, 10 * done // max(total, 1))
        if not self._live and tenth != self._tenth:
            self.say(f"{label} {done}/{total}")
        self._tenth = tenth


def fitting_table(rows: Sequence[Mapping[str, Value]], console: Console, *, title: str | None = None) -> Group:
    """Show rows as a table that fits the console: what is equal in all of them goes below, once.

    Where the columns do not fit side by side the table is turned, so that each row becomes a column.
    """
    if not rows:
        return Group(Text("nothing to show", style="dim"))
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if _worth_showing(name, rows)]
    uniform = [name for name in columns if len(rows) > 1 and len({row.get(name) for row in rows}) == 1]
    varying = [{name: row.get(name) for name in columns if name not in uniform} for row in rows]
    upright, turned = table_of(varying, title=title), _turned_table(varying, title=title)
    table = next((each for each in (upright, turned) if _width(each) <= console.width), upright)
    shared = ", ".join(f"{heading(name)} {format_value(name, rows[0].get(name))}" for name in uniform)
    return Group(table, *([Text(f"in every row: {shared}", style="dim")] if shared else []))


def table_of(rows: Sequence[Mapping[str, Value]], *, title: str | None = None) -> Table:
    """Make a table of rows that share their columns; a column that is empty throughout is left out."""
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if _worth_showing(name, rows)]
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        widest = max(len(format_value(name, row.get(name))) for row in rows)
        table.add_column(
            _folded(heading(name), widest), justify="right" if _numeric(name, rows) else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(escape(format_value(name, row.get(name))) for name in columns))
    return table


def _width(table: Table) -> int:
    """Characters that the table takes if nothing in it is broken or cut."""
    return Console(width=10_000).measure(table).maximum


def _folded(heading: str, width: int) -> str:
    """Fold a heading between words, so that it is hardly wider than what stands below it."""
    width = max(width, *map(len, heading.split()))
    return "\n".join(textwrap.wrap(heading, width))


def _turned_table(rows: Sequence[Mapping[str, Value]], *, title: str | None) -> Table:
    """Make a table with a line for each column of `rows`; text columns at the front become the heading."""
    names = list(rows[0])
    num_heading = next((place for place, name in enumerate(names) if _numeric(name, rows)), 1) or 1
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for row in rows:
        words = [format_value(name, row[name]) for name in names[:num_heading] if row[name] not in (None, "")]
        table.add_column(escape("\n".join(words)), justify="right")
    for name in names[num_heading:]:
        table.add_row(heading(name), *(escape(format_value(name, row[name])) for row in rows))
    return table


def _numeric(name: str, rows: Sequence[Mapping[str, Value]]) -> bool:
    return all(isinstance(row.get(name), int | float | None) for row in rows)


def _worth_showing(name: str, rows: Sequence[Mapping[str, Value]]) -> bool:
    return any(row.get(name) not in (None, "") for row in rows)


def heading(name: str) -> str:
    """Name a column without its unit, which its values bear."""
    words = name
    for suffix in ("_s", "_pct"):
        words = words.removesuffix(suffix)
    return words.replace("_", " ")


def format_value(name: str, value: Value) -> str:
    """Format a value by the unit in its column's name."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if name.endswith("_s"):
        return f"{value:.2f}{_GAP}s" if value >= 1 else f"{1e3 * value:.1f}{_GAP}ms"
    if name.endswith("_pct"):
        return f"{value:.4g}{_GAP}%"
    if "speedup" in name:
        return f"{value:.2f}×"
    if "bytes" in name:
        return _format_bytes(value)
    if "flops" in name:
        return f"{value / 1e9:.3g}{_GAP}G"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _format_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f}{_GAP}{unit}" if unit == "B" else f"{count:.1f}{_GAP}{unit}"
        count /= 1000
    return f"{count:.2f}{_GAP}GB"
