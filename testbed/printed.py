"""Rows of the summary out of what a program prints, for programs that know nothing of the testbed.

    a line of stdout that begins with "{" ── to a line that begins with "}" ──> JSON object
        --columns of workload.summary, by dotted path--> row        without any one of them --> passed over

Objects may stand in one line or be spread over lines, the inner ones indented, as most programs print them.
"""

import json
from collections.abc import Mapping

from testbed.value_at import as_cell, value_at

__all__ = ["PrintedRows"]

Row = dict[str, str | int | float | bool | None]

LIMIT_CHARACTERS = 8 << 20
"""What an object may have; longer ones are passed over."""
_ABSENT = object()


class PrintedRows:
    """The rows that one device's program prints."""

    def __init__(self, device: str, columns: Mapping[str, str]):
        self._device, self._columns = device, columns
        self._lines: list[str] = []
        self._size = 0

    def take(self, line: str) -> Row | None:
        """Read the next line of stdout; return the row that it completes."""
        if not self._columns:
            return None
        if line.startswith("{"):
            self._lines, self._size = [], 0
        elif not self._lines:
            return None
        self._lines.append(line)
        self._size += len(line)
        if self._size > LIMIT_CHARACTERS:
            self._lines = []
        return self._row() if line.startswith("}") or len(self._lines) == 1 else None

    def _row(self) -> Row | None:
        """Return the row of the lines so far, if they are an object that has every column."""
        try:
            said = json.loads("\n".join(self._lines), parse_constant=str)  # NaN and the like are text
        except ValueError:
            return None
        self._lines = []
        found = {name: value_at(said, path, _ABSENT) for name, path in self._columns.items()}
        if any(value is _ABSENT for value in found.values()):
            return None
        return {"device": self._device, **{name: as_cell(value) for name, value in found.items()}}
