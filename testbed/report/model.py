"""What a report says, apart from how it looks: the page is made of these and nothing else."""

from dataclasses import dataclass, field

from testbed.display import format_value, heading
from testbed.record import Row

__all__ = ["Cell", "Fact", "Figure", "Report", "Section", "Table", "Verdict", "table"]

Value = str | int | float | bool | None

MOST_ROWS = 1000
"""Of a table in a report; its file has them all."""


@dataclass(frozen=True)
class Cell:
    """What a table shows, and what it is sorted by."""

    text: str
    value: float | str


@dataclass(frozen=True)
class Table:
    """Rows under headings; `numeric` says which columns are numbers."""

    title: str
    headings: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: bool = False
    """Whether only the title shows until it is opened."""
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart with what it shows."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Fact:
    """One value with its name."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether something that was asked for came true."""

    met: bool
    text: str


@dataclass(frozen=True)
class Section:
    """One part of the page; `missing` says in a sentence each what cannot be shown, and why."""

    key: str
    title: str
    lead: str = ""
    missing: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    facts: tuple[Fact, ...] = ()
    commands: tuple[str, ...] = ()
    listing: tuple[tuple[str, str], ...] = field(default=())
    """Titles and texts that are shown as they stand, folded."""


@dataclass(frozen=True)
class Report:
    """All of it."""

    title: str
    setting: str
    status: str
    """As summary.json has it: ok, failed, interrupted, running; or unknown."""
    when: str
    error: str
    facts: tuple[Fact, ...]
    verdicts: tuple[Verdict, ...]
    sections: tuple[Section, ...]


def table(title: str, rows: list[Row], *, folded: bool = False, source: str = "") -> Table:
    """Make a table of rows whose values bear their columns' units.

    Left out are digests, columns that are empty throughout, and those that say the same in every row, which are told
    below it.
    """
    names = dict.fromkeys(name for row in rows for name in row if not name.endswith("_digest"))
    told = [name for name in names if any(row.get(name) is not None for row in rows)]
    same = [name for name in told if len(rows) > 2 and len({row.get(name) for row in rows}) == 1]
    columns = [name for name in told if name not in same]
    numeric = tuple(all(isinstance(row.get(name), int | float | None) for row in rows) for name in columns)
    shown = tuple(tuple(_cell(name, row.get(name)) for name in columns) for row in rows[:MOST_ROWS])
    notes = [f"The first {MOST_ROWS:,} of {len(rows):,} rows; {source} has them all."] if len(rows) > MOST_ROWS else []
    notes += [f"In every row: {', '.join(_named(name, rows[0][name]) for name in same)}."] if same else []
    return Table(title, tuple(map(heading, columns)), numeric, shown, folded, " ".join(notes))


def _named(name: str, value: Value) -> str:
    return f"{heading(name)} {format_value(name, value)}"


def _cell(name: str, value: Value) -> Cell:
    if value is None:
        return Cell("–", "")
    return Cell(format_value(name, value), value if isinstance(value, str) else float(value))
