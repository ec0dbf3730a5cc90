"""The YAML of a sweep: a base scenario, and what varies.

    base: ../methods.yaml                            relative to the sweep file
    set: {workload: {config: {requests: 3}}}         merged over the base, for every cell
    matrix:                                          every combination
      links.default.rate_mbps: [10, 20, 50]
    zip:                                             these change together: the first of each, the second, ...
      - {devices.count: [2, 4], devices.cpus: [0.4, 0.2]}
    exclude:
      - {links.default.rate_mbps: 50, devices.count: 2}

Only what the sweep file can say about itself is checked here; `cells` checks it against the base.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import InitErrorDetails

from testbed.block import Block, Rule
from testbed.faults import fault_at, show, violation
from testbed.fields import FolderName, Text
from testbed.scenario import JSON_SCHEMA_DIALECT, without_null_defaults
from testbed.scenario import json_schema as scenario_schema
from testbed.sweep.paths import PATH_PATTERN, PathError, parse_path
from testbed.yaml_file import EXTENDS

__all__ = ["SweepFile", "json_schema"]


def _check_path(value: object) -> object:
    try:
        parse_path(str(value))
    except PathError as error:
        raise violation(error.must_be, error.todo) from None
    if value == "name":
        raise violation("a path to something that is measured", "cells are named by the sweep")
    return value


Path = Annotated[str, BeforeValidator(_check_path)]
Values = Annotated[tuple[Any, ...], Field(strict=False, min_length=1)]


class SweepFile(Block):
    """One scenario at every point of a matrix."""

    name: FolderName
    """Name of the sweep, of its cells' scenarios and of its result folder."""
    base: Text
    """Scenario file that all cells begin with, relative to this file."""
    set: dict[str, Any] = Field(default_factory=dict)
    """A part of a scenario, merged over the base for every cell."""
    matrix: dict[Path, Values] = Field(default_factory=dict)
    """Values by dotted path; every combination is a cell."""
    zip: Annotated[tuple[dict[Path, Values], ...], Field(strict=False)] = ()
    """Groups of paths whose values change together; each group is crossed with the others and with the matrix."""
    exclude: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = ()
    """Cells to leave out: those that have all the values of an entry."""
    show: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    """Columns of the summary that are shown at the end."""
    cell_s: Annotated[
        float | None,
        Field(gt=0),
        Rule("a number above 0 or null", "it counts seconds that a cell takes, for the first estimate", "number"),
    ] = None
    """Seconds that a cell is thought to take, until some have been run."""

    @classmethod
    def rules_between(cls, data: Mapping[Any, Any]) -> Iterator[InitErrorDetails]:
        """Refuse axes that are none, that overlap or that are of unequal length, and exclusions of what is no axis."""
        axes = list(_axes(data))
        if not axes and isinstance(data.get("matrix", {}), dict) and isinstance(data.get("zip", []), list):
            rule = violation("given an axis", "add a path and its values to matrix or zip", absent=True)
            yield fault_at(("matrix",), None, rule)
        yield from _faults_of_axes(axes)
        for number, group in enumerate(data["zip"] if isinstance(data.get("zip"), list) else []):
            lengths = {len(values) for _, path, values in _axes({"zip": [group]}) if isinstance(values, list)}
            if len(lengths) > 1:
                rule = violation("lists of equal length", f"got {' and '.join(map(str, sorted(lengths)))} values")
                yield fault_at(("zip", number), sorted(group), rule)
        known = {path for _, path, _ in axes}
        for number, entry in enumerate(data["exclude"] if isinstance(data.get("exclude"), list) else []):
            for path in entry if isinstance(entry, dict) else ():
                if path not in known:
                    rule = violation("a path of matrix or zip", f"known here: {', '.join(sorted(known))}")
                    yield fault_at(("exclude", number), path, rule)

    def groups(self) -> list[dict[str, tuple[Any, ...]]]:
        """Return what varies: paths whose values change together, group by group."""
        return [*({path: values} for path, values in self.matrix.items()), *map(dict, self.zip)]

    @property
    def axes(self) -> tuple[str, ...]:
        """The paths that vary."""
        return tuple(path for group in self.groups() for path in group)


def json_schema() -> dict[str, Any]:
    """Describe sweep files as JSON Schema 2020-12, for editors; `set` has all keys of a scenario.

    Weaker than `load`: what axes have to do with one another, and with the base, is not in it.
    """
    schema, scenario = SweepFile.model_json_schema(by_alias=True), scenario_schema()
    keys, paths = schema["properties"], {"pattern": PATH_PATTERN}
    for places in (keys["matrix"], keys["zip"]["items"], keys["exclude"]["items"]):
        places["propertyNames"] = paths
    of_scenario = {key: value for key, value in scenario["properties"].items() if key not in ("name", EXTENDS)}
    keys["set"] |= {"properties": of_scenario, "additionalProperties": False}
    keys[EXTENDS] = {"type": "string", "description": "Sweep file to merge over, relative to this one."}
    needed = schema.pop("required")
    complete = {"required": needed, "anyOf": [{"required": ["matrix"]}, {"required": ["zip"]}]}
    schema |= {"$defs": scenario["$defs"], "anyOf": [{"required": [EXTENDS]}, complete]}
    return {"$schema": JSON_SCHEMA_DIALECT, **without_null_defaults(schema)}


Axis = tuple[tuple[str | int, ...], str, Any]


def _axes(data: Mapping[Any, Any]) -> Iterator[Axis]:
    """Yield where each axis stands, its path and its values, of data that may hold anything."""
    matrix, groups = data.get("matrix"), data.get("zip")
    for path, values in matrix.items() if isinstance(matrix, dict) else ():
        yield ("matrix", str(path)), str(path), values
    for number, group in enumerate(groups if isinstance(groups, list) else []):
        for path, values in group.items() if isinstance(group, dict) else ():
            yield ("zip", number, str(path)), str(path), values


def _faults_of_axes(axes: list[Axis]) -> Iterator[InitErrorDetails]:
    seen: list[str] = []
    for location, path, values in axes:
        other = next((known for known in seen if _overlap(known, path)), None)
        if other is not None:
            yield fault_at(location, path, violation(f"apart from the axis {other}", "a value can be set only once"))
        seen.append(path)
        if isinstance(values, list) and location[0] == "matrix":
            twice = [value for number, value in enumerate(values) if value in values[:number]]
            if twice:
                rule = violation("a list of different values", f"{show(twice[0])} stands twice; --repeat runs again")
                yield fault_at(location, values, rule)


def _overlap(first: str, second: str) -> bool:
    try:
        one, other = parse_path(first), parse_path(second)
    except PathError:
        return first == second
    length = min(len(one), len(other))
    return one[:length] == other[:length]
