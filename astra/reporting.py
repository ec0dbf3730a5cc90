"""Where results go: to the device's agent if there is one, else to CSV files and a log.

    program ──{"op": "row", …}\n──► agent      TESTBED_SOCKET names a Unix socket; one reply line for each request
            ◄──{"ok": true, …}\n──
    program ──► <folder>/<table>.csv, a log line for each progress      without it

Library code reports; only a command line prints. What arrives by socket is printed by the controller; what is
reported without one goes to a writer of lines that the caller passes, or to the log.
"""

import csv
import json
import logging
import math
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from astra.errors import AstraError

__all__ = ["AgentReporter", "FileReporter", "Links", "Reporter", "Row", "connect"]

_LOGGER = logging.getLogger(__name__)

REPLY_TIMEOUT_S = 30.0
"""How long the agent may take to answer; it reads kernel counters in milliseconds."""

_REPLY_LIMIT_BYTES = 1 << 20

Cell = str | int | float | bool | None
Row = Mapping[str, Cell]
Links = dict[str, dict[str, int]]
"""Counters by source device: bytes, packets, lost, overflowed."""


class Reporter(Protocol):
    """Takes what a rank has to tell."""

    def row(self, table: str, row: Row) -> None:
        """Append a row to a table; column names end in their unit."""
        ...

    def mark(self, name: str) -> Links | None:
        """Name this moment; give the kernel's counters of the links that end here, or None if nobody shapes them."""
        ...

    def progress(self, label: str, done: int, total: int) -> None:
        """Say how far a piece of work has come."""
        ...

    def again(self) -> bool:
        """Ask, once all is done, whether to do the same once more; what has been reported and written is then taken."""
        ...

    def close(self) -> None:
        """Report no more."""
        ...


def connect(write: Callable[[str], None] | None = None) -> Reporter:
    """Choose by the environment: the agent at TESTBED_SOCKET, else files in TESTBED_OUT or ./astra-results.

    Args:
        write: takes the lines of a run without an agent; they are logged if there is none.

    Raises:
        AstraError: TESTBED_SOCKET is set and nobody listens there.
    """
    socket_path = os.environ.get("TESTBED_SOCKET")
    if socket_path:
        return AgentReporter(Path(socket_path))
    return FileReporter(Path(os.environ.get("TESTBED_OUT") or "astra-results"), write)


def _check_row(table: str, row: Row) -> None:
    """Refuse what neither JSON nor CSV can carry."""
    for column, cell in row.items():
        fits = cell is None or isinstance(cell, str | int | float | bool)
        if not fits or (isinstance(cell, float) and not math.isfinite(cell)):
            raise AstraError(
                f"table {table}: {column} must be text, a finite number, a truth value or None, got {cell!r}; "
                "convert it or leave it out"
            )


class AgentReporter:
    """A `Reporter` that speaks to the agent of this device; every call waits for its reply."""

    def __init__(self, path: Path):
        self._path = path
        self._unread = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(REPLY_TIMEOUT_S)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise self._gone("be connected to", error) from error

    def row(self, table: str, row: Row) -> None:
        """Have the controller append the row to `<table>.csv` of the run."""
        _check_row(table, row)
        self._ask({"op": "row", "table": table, "row": dict(row)})

    def mark(self, name: str) -> Links | None:
        """Put the mark in the run's record and read the counters."""
        links: Links | None = self._ask({"op": "mark", "name": name}).get("links")
        return links

    def progress(self, label: str, done: int, total: int) -> None:
        """Show it on the controller's display."""
        self._ask({"op": "progress", "label": label, "done": done, "total": total})

    def again(self) -> bool:
        """Wait until every device is done, and until the links are as they shall be the next time."""
        self._socket.settimeout(None)  # the agent hangs up if its controller falls silent
        try:
            return bool(self._ask({"op": "again"}).get("again"))
        finally:
            self._socket.settimeout(REPLY_TIMEOUT_S)

    def close(self) -> None:
        """Hang up; may be called again."""
        self._socket.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._read_line()
        except OSError as error:
            raise self._gone(f"take {request['op']!r}", error) from error
        try:
            reply = json.loads(line)
        except ValueError:
            reply = None
        if not isinstance(reply, dict):
            raise AstraError(f"agent at {self._path}: reply to {request['op']!r} must be a JSON object, got {line!r}")
        if reply.get("ok") is not True:
            raise AstraError(
                f"agent at {self._path} refused {request['op']!r}: {reply.get('error', 'no reason given')}"
            )
        return reply

    def _read_line(self) -> bytes:
        while b"\n" not in self._unread:
            arrived = self._socket.recv(65536)
            if not arrived:
                raise ConnectionResetError("it hung up")
            self._unread += arrived
            if len(self._unread) > _REPLY_LIMIT_BYTES:
                raise ConnectionAbortedError("its reply does not end")
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _gone(self, what: str, error: OSError) -> AstraError:
        return AstraError(
            f"agent at {self._path} could not {what}: {error}; the run has ended or was stopped. "
            "Unset TESTBED_SOCKET to run without a testbed"
        )


class FileReporter:
    """A `Reporter` for runs without an agent: a CSV file for each table, a line for each progress.

    Rows are added to tables that are there already. One process writes a table.
    """

    def __init__(self, folder: Path, write: Callable[[str], None] | None = None):
        self._folder = folder
        self._write = write or _LOGGER.info
        self._tables: dict[str, list[dict[str, Any]]] = {}

    def row(self, table: str, row: Row) -> None:
        """Add the row to `<table>.csv`; a new column is empty in the rows before."""
        _check_row(table, row)
        path = self._folder / f"{table}.csv"
        rows = self._tables.get(table)
        if rows is None:
            rows = self._tables[table] = _read_csv(path)
        columns = list(dict.fromkeys(column for known in rows for column in known))
        rows.append(dict(row))
        if columns and set(row) <= set(columns):
            with path.open("a", newline="") as file:
                csv.DictWriter(file, columns).writerow(row)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*columns, *(column for column in row if column not in columns)])
            writer.writeheader()
            writer.writerows(rows)

    def mark(self, name: str) -> Links | None:
        """Tell the moment; nobody counts the links of a machine that is not a testbed's device."""
        self._write(name)
        return None

    def progress(self, label: str, done: int, total: int) -> None:
        """Write a line."""
        self._write(f"{label}: {done}/{total}")

    def again(self) -> bool:
        """Nobody asks for more without an agent."""
        return False

    def close(self) -> None:
        """Nothing is held open."""


def _read_csv(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
