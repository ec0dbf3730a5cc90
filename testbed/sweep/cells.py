"""A sweep file to its cells: a scenario for each point of the matrix, with an id that stays. Pure but for reading YAML.

    sweep file + base --load--> Sweep(cells)      Cell(id, values, scenario)

A cell's id is a digest of its resolved scenario, so it is the same in every shard, in whatever order cells are run, and
when other values are added to the matrix; it is another one as soon as the cell would measure something else.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from testbed.errors import InputError
from testbed.faults import Location, fault_line, path_text, show
from testbed.scenario import Scenario, resolve
from testbed.sweep.paths import PathError, last_words, parse_path, replaced
from testbed.sweep.schema import SweepFile
from testbed.yaml_file import Document, merge, read

__all__ = ["Cell", "Sweep", "is_sweep", "load", "value_text"]

ID_CHARACTERS = 10
SLUG_CHARACTERS = 60


@dataclass(frozen=True)
class Cell:
    """One point of a sweep."""

    values: Mapping[str, Any]
    """What is particular to it, by path, in the order of the axes."""
    scenario: Scenario

    @cached_property
    def id(self) -> str:
        """A digest of all that is measured; names do not count."""
        content = self.scenario.model_dump(mode="json", by_alias=True)
        del content["name"]
        text = json.dumps(content, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=ID_CHARACTERS // 2).hexdigest()

    @property
    def label(self) -> str:
        """Its values in short, for people."""
        names = last_words(list(self.values))
        return ", ".join(f"{names[path]}={value_text(value)}" for path, value in self.values.items())

    @property
    def folder_name(self) -> str:
        """Its values and its id, for a file system."""
        slug = re.sub(r"[^A-Za-z0-9.=-]+", "_", self.label.replace(", ", "_"))[:SLUG_CHARACTERS].strip("_")
        return f"{slug}-{self.id}"


@dataclass(frozen=True)
class Sweep:
    """All cells of a sweep file, in the order of its matrix."""

    name: str
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    show: tuple[str, ...] = ()
    """Columns of the summary worth showing."""
    cell_s: float | None = None
    """Seconds that a cell is thought to take."""


def value_text(value: Any) -> str:
    """Write a value of an axis in few characters; a list or mapping becomes a digest."""
    if isinstance(value, list | dict):
        return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=2).hexdigest()
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def is_sweep(path: Path) -> bool:
    """Tell a sweep file from a scenario: it has a base. Raises InputError for what is no YAML."""
    return "base" in read(path).tree


def load(path: Path) -> Sweep:
    """Read a sweep file, what it extends, and its base. Raises InputError with every fault of all cells."""
    document = read(path)
    try:
        wanted = SweepFile.model_validate(document.tree)
    except ValidationError as error:
        found = [fault_line(str(document.origin(each["loc"])), each) for each in error.errors()]
        raise InputError(list(dict.fromkeys(found))) from None
    base = _base_of(document, wanted)
    chosen = [values for values in _points(wanted) if not any(_has(values, entry) for entry in wanted.exclude)]
    faults = [*_dangling(path, wanted), *_misplaced(path, wanted, base)]
    if not chosen:
        faults.append(f"{path}: exclude must leave at least one cell, got none; remove an entry")
    if faults:
        raise InputError(faults)
    cells: list[Cell] = []
    for values in chosen:
        try:
            cells.append(Cell(values, _scenario_of(path, wanted, base, values)))
        except InputError as error:
            faults += error.faults
    faults += _equal_cells(path, cells)
    if faults:
        raise InputError(list(dict.fromkeys(faults)))
    return Sweep(wanted.name, wanted.axes, tuple(cells), wanted.show, wanted.cell_s)


def _base_of(document: Document, wanted: SweepFile) -> Document:
    """Return the base scenario with `set` merged over it, which remembers who said what."""
    stated_in = document.origin(("base",))
    file = stated_in.parent / wanted.base
    if not file.is_file():
        todo = f"there is no file {file}; paths are relative to {stated_in}"
        raise InputError([f"{stated_in}: base must be an existing file, got {show(wanted.base)}; {todo}"])
    base = read(file)
    sweep_layers = tuple((file, dict(content.get("set") or {})) for file, content in document.layers)
    return Document(merge(base.tree, wanted.set), (*sweep_layers, *base.layers))


def _points(wanted: SweepFile) -> Iterator[dict[str, Any]]:
    """Yield the values of each cell; the last axis changes fastest."""
    choices = []
    for group in wanted.groups():
        rows = zip(*group.values(), strict=True)
        choices.append([dict(zip(group, row, strict=True)) for row in rows])
    for combination in itertools.product(*choices):
        yield {path: value for part in combination for path, value in part.items()}


def _has(values: Mapping[str, Any], entry: Mapping[str, Any]) -> bool:
    return all(values[path] == value for path, value in entry.items())


def _dangling(path: Path, wanted: SweepFile) -> Iterator[str]:
    points = list(_points(wanted))
    for number, entry in enumerate(wanted.exclude):
        if not any(_has(values, entry) for values in points):
            todo = "remove it, or correct its values"
            yield f"{path}: exclude[{number}] must be about a cell, got {show(dict(entry))}; {todo}"


def _misplaced(path: Path, wanted: SweepFile, base: Document) -> Iterator[str]:
    """Yield the axes that lead nowhere in the base."""
    for axis in wanted.axes:
        try:
            replaced(base.tree, parse_path(axis), None)
        except PathError as error:
            where = path_text(("matrix" if axis in wanted.matrix else "zip", axis))
            yield f"{path}: {where} must be {error.must_be}, got {error.got}; {error.todo}"


def _scenario_of(path: Path, wanted: SweepFile, base: Document, values: Mapping[str, Any]) -> Scenario:
    tree = base.tree
    for axis, value in values.items():
        tree = replaced(tree, parse_path(axis), value)
    return resolve({**tree, "name": wanted.name}, _origin(path, base, [parse_path(axis) for axis in values]))


def _origin(path: Path, base: Document, axes: list[tuple[str | int, ...]]) -> Callable[[Location], Path]:
    def origin(location: Location) -> Path:
        place = tuple(location)
        return path if any(place[: len(axis)] == axis for axis in axes) else base.origin(place)

    return origin


def _equal_cells(path: Path, cells: list[Cell]) -> Iterator[str]:
    seen: dict[str, Cell] = {}
    for cell in cells:
        if cell.id in seen:
            both = f"{seen[cell.id].label} and {cell.label}"
            yield f"{path}: matrix must give different scenarios, got the same for {both}; --repeat runs one again"
        seen[cell.id] = cell
