"""Which run comes when, so that least is started again. Pure.

    cells --ordered--> cells that may share devices stand together, among them those that may share a loaded program
          --shard-->   a part of them, in one piece     --plan--> Batches: runs on the same devices

Cells with equal `devices` may share devices, and with an equal workload too the program that is loaded on them: links
and seed are all that differs then. A cell with events shares nothing: they may leave devices and programs changed.
"""

import json
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from testbed.scenario import Scenario
from testbed.sweep.cells import Cell

__all__ = ["Batch", "Run", "num_programs", "ordered", "plan", "shard"]


@dataclass(frozen=True)
class Run:
    """One execution of a cell."""

    cell: Cell
    number: int
    """From 1 on."""

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from all others of the sweep."""
        return self.cell.id, self.number

    def shares_program_with(self, other: "Run") -> bool:
        """Whether the program of one may go on for the other."""
        return _program(self.cell) == _program(other.cell)


@dataclass(frozen=True)
class Batch:
    """Runs that may share devices, in order."""

    runs: tuple[Run, ...]


def ordered(cells: Iterable[Cell]) -> list[Cell]:
    """Put together what may share devices, and within that what may share a program; else the order stays."""
    known = list(cells)
    devices = _ranks(_devices(cell) for cell in known)
    programs = _ranks(_program(cell) for cell in known)
    return sorted(known, key=lambda cell: (devices[_devices(cell)], programs[_program(cell)]))


def shard(cells: Sequence[Cell], number: int, count: int) -> Sequence[Cell]:
    """Return part `number` (from 1 on) of `count` parts of ordered cells, whose sizes differ by one at most."""
    return cells[len(cells) * (number - 1) // count : len(cells) * number // count]


def plan(cells: Sequence[Cell], repeat: int, finished: Collection[tuple[str, int]] = ()) -> list[Batch]:
    """Return the runs that are left of ordered cells.

    Repetitions take turns among the cells that share a program, so that no slow spell of the machine falls on one cell.
    """
    batches = []
    for _, sharing in groupby(cells, _devices):
        runs = [
            Run(cell, number)
            for _, group in groupby(sharing, _program)
            for number, cell in _in_turns(list(group), repeat)
            if (cell.id, number) not in finished
        ]
        if runs:
            batches.append(Batch(tuple(runs)))
    return batches


def num_programs(batches: Iterable[Batch]) -> int:
    """Count how often a program is started, if it can go on from run to run."""
    return sum(len(list(groupby(batch.runs, lambda run: _program(run.cell)))) for batch in batches)


def _in_turns(cells: list[Cell], repeat: int) -> list[tuple[int, Cell]]:
    return [(number, cell) for number in range(1, repeat + 1) for cell in cells]


def _devices(cell: Cell) -> Hashable:
    return _text(cell.scenario, {"devices"}), _apart(cell)


def _program(cell: Cell) -> Hashable:
    return _text(cell.scenario, {"devices", "workload"}), _apart(cell)


def _apart(cell: Cell) -> str:
    return cell.id if cell.scenario.events else ""


def _text(scenario: Scenario, blocks: set[str]) -> str:
    return json.dumps(scenario.model_dump(mode="json", by_alias=True, include=blocks), sort_keys=True)


def _ranks(keys: Iterable[Hashable]) -> dict[Hashable, int]:
    return {key: rank for rank, key in enumerate(dict.fromkeys(keys))}
