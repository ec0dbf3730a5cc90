"""Scenarios: the YAML that says which devices and links to make, what to run on them and what to expect.

    file.yaml --yaml_file.read--> tree --parse--> Scenario --dump--> scenario.yaml of the run folder
                                            \\--> InputError with every fault of the file

Reads files, starts nothing. A value is taken as it stands or refused, never clipped, coerced or ignored.
"""

import io
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails
from ruamel.yaml import YAML

from testbed.block import OMITTABLE, Block, Rule, faults_error
from testbed.device_schema import MAX_DEVICES, Devices, DeviceSpec, device_names
from testbed.errors import InputError
from testbed.event_schema import Event
from testbed.faults import Location, fault_at, fault_line, violation
from testbed.fields import FolderName, Scalar, Text, names_context
from testbed.link_schema import FRAME_BITS, Links, LinkSettings
from testbed.recordings import inline
from testbed.yaml_file import EXTENDS, read

__all__ = [
    "DeviceSpec",
    "Devices",
    "Expectation",
    "LinkSettings",
    "Links",
    "Scenario",
    "Workload",
    "device_names",
    "json_schema",
    "load",
    "parse",
    "resolve",
    "without_null_defaults",
]

JSON_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"

Command = Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]
ColumnName = Annotated[
    str,
    Field(pattern=r"^[a-z][a-z0-9_]*$"),
    Rule("the name of a column of summary.csv", "write it in small letters, digits and _", "text"),
]
JsonPath = Annotated[
    str,
    Field(pattern=r"^[^.\[\]]+(\[[0-9]+\])*(\.[^.\[\]]+(\[[0-9]+\])*)*$"),
    Rule("a path such as seconds or end.streams[0].bytes", "join keys by dots", "text"),
]
Bound = Annotated[float, Rule("a finite number", "write the bound as a plain number", "number")]


def _json_faults(value: object, location: tuple[str | int, ...]) -> Iterator[InitErrorDetails]:
    """Yield whatever JSON cannot say, with its place below `location`."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield fault_at(location, key, violation("a mapping whose keys are text", "put the key in quotes"))
            yield from _json_faults(item, (*location, str(key)))
    elif isinstance(value, list):
        for position, item in enumerate(value):
            yield from _json_faults(item, (*location, position))
    elif isinstance(value, float) and not math.isfinite(value):
        yield fault_at(location, value, violation("a finite number", "JSON has no infinity and no nan"))
    elif value is not None and not isinstance(value, str | int | float):
        rule = violation("text, a number, true, false, null, a list or a mapping", "put it in quotes")
        yield fault_at(location, value, rule)


def _check_json(value: dict[str, Any]) -> dict[str, Any]:
    faults = list(_json_faults(value, ()))
    if faults:
        raise faults_error(faults)
    return value


class Workload(Block):
    """The program that runs on every device."""

    command: Command
    """Program and arguments, as a list."""
    prepare: Command | None = None
    """Program to run once before the devices start, such as one that fits a model; null for none."""
    check: Command | None = None
    """Program that checks config before a run; exit code 2 and lines on stderr are faults; null for none."""
    config: Annotated[dict[Any, Any], AfterValidator(_check_json)] = Field(default_factory=dict)
    """Handed to the program as a JSON file; testbed does not look into it."""
    summary: Annotated[Annotated[dict[ColumnName, JsonPath], Field(min_length=1)] | None, OMITTABLE] = None
    """Columns of summary.csv, each with its place (a.b, a[0].b) in JSON objects that the program prints on stdout."""


class Expectation(Block):
    """What the summary of a run has to say; a run that does not meet it fails."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [key]} for key in ("at_least", "at_most", "equals")]}
    )

    metric: ColumnName
    """Column of summary.csv."""
    where: dict[Text, Scalar] = Field(default_factory=dict)
    """Values of other columns that choose the rows; every chosen row has to meet the bounds."""
    at_least: Annotated[Bound | None, OMITTABLE] = None
    """Smallest value that is good enough."""
    at_most: Annotated[Bound | None, OMITTABLE] = None
    """Largest value that is good enough."""
    equals: Annotated[Scalar | None, OMITTABLE] = None
    """The only value that is good enough."""

    @classmethod
    def rules_between(cls, data: Mapping[Any, Any]) -> Iterator[InitErrorDetails]:
        """Refuse an expectation without a bound, and bounds that exclude each other."""
        bounds = [key for key in ("at_least", "at_most", "equals") if key in data]
        if not bounds:
            rule = violation("given a bound: at_least, at_most or equals", "add one", absent=True)
            yield fault_at((), None, rule)
        if "equals" in bounds and len(bounds) > 1:
            rule = violation(f"absent where {bounds[0]} is given", "keep one of the two")
            yield fault_at(("equals",), data["equals"], rule)
        low, high = data.get("at_least"), data.get("at_most")
        if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
            yield fault_at(("at_most",), high, violation(f"no less than at_least, {low!r}", "swap the two"))


class Security(Block):
    """How what programs send to one another is protected."""

    curve: Annotated[
        Literal["auto", "always", "never"],
        Rule("auto, always or never", "auto gives programs keys wherever others could reach their network"),
    ] = "auto"
    """Whether programs get keys, with which `astra` encrypts and authenticates: auto is always, but in namespaces."""


class Scenario(Block):
    """One emulated setting: devices, links, a program and what to expect of it."""

    name: FolderName
    """Name of the scenario and of its result folders."""
    seed: Annotated[
        int,
        Field(ge=0, lt=2**63),
        Rule("a whole number from 0 to 2^63 - 1", "it fixes which packets are lost", "integer"),
    ] = 0
    """The only source of randomness in the network: same seed, same lost packets."""
    devices: Devices
    """The emulated machines."""
    links: Links = Links()
    """What joins the devices; unshaped if left out."""
    events: Annotated[tuple[Event, ...], Field(strict=False)] = ()
    """Changes of links and devices while the program runs."""
    security: Security = Security()
    """Keys of the programs' connections."""
    workload: Workload
    """The program that runs on every device."""
    expect: Annotated[tuple[Expectation, ...], Field(strict=False)] = ()
    """What the summary has to say for the run to succeed."""

    @model_validator(mode="after")
    def _check_queues_under_events(self) -> Self:
        """Refuse events that make a queue too short for a frame: the link would lose everything."""
        faults = []
        for position, event in enumerate(self.events):
            names = device_names(self.devices.count)
            covered = [(a, b) for a in names for b in names if a != b and event.link and event.link.covers(a, b)]
            changes = {} if event.set is None else event.set.given()
            slowest_mbps = event.least_rate_mbps()
            for link in (self.links.settings(*pair) for pair in covered):
                rate_mbps = slowest_mbps or link.rate_mbps
                queue_ms = changes.get("queue_ms", link.queue_ms)
                frame_ms = FRAME_BITS / (rate_mbps * 1000) if rate_mbps else 0.0
                if queue_ms < frame_ms:
                    rule = f"on links whose queue_ms is at least {frame_ms:.2f}, to hold one frame at the rate"
                    shown = int(queue_ms) if queue_ms == int(queue_ms) else queue_ms
                    faults.append(fault_at(("events", position), shown, violation(rule, "raise queue_ms")))
                    break
        if faults:
            raise faults_error(faults)
        return self

    def dump(self) -> str:
        """Write the scenario as YAML, defaults included, such that loading it gives an equal scenario."""
        writer = YAML(typ="safe", pure=True)
        writer.default_flow_style = False
        writer.allow_unicode = False  # written bare, some line separators do not come back
        writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # annotated as None
        text = io.StringIO()
        writer.dump(self.model_dump(mode="json", by_alias=True), text)
        return text.getvalue()


def load(path: Path) -> Scenario:
    """Read the scenario `path` and whatever it extends.

    Raises InputError with every fault, each as `file: path.to.field must be <rule>, got <value>; <what to do>`.
    """
    document = read(path)
    return resolve(document.tree, document.origin)


def parse(tree: Mapping[str, Any], where: str) -> Scenario:
    """Make a scenario of plain values; faults name `where`, a file path, as their origin, and files that the scenario
    names are relative to it. Raises InputError like `load`.
    """
    return resolve(tree, lambda _: Path(where))


def resolve(tree: Mapping[str, Any], origin: Callable[[Location], Path]) -> Scenario:
    """Make a scenario of plain values, of which `origin` says which file has them. Raises InputError like `load`."""
    devices = tree.get("devices")
    count = devices.get("count") if isinstance(devices, dict) else None
    names: tuple[str, ...] = ()  # where the number is at fault, names are not checked against it
    if isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= MAX_DEVICES:
        names = device_names(count)
    complete, unread = inline(tree, lambda location: origin(location).parent)
    found = faults_error(unread).errors() if unread else []
    scenario = None
    try:
        scenario = Scenario.model_validate(complete, context=names_context(names))
    except ValidationError as error:
        found += error.errors()
    if scenario is None or found:
        raise InputError(list(dict.fromkeys(fault_line(str(origin(each["loc"])), each) for each in found)))
    return scenario


def json_schema() -> dict[str, Any]:
    """Describe scenario files as JSON Schema 2020-12, for editors.

    Weaker than `load`: rules between keys are not in it, and a file that extends another may leave out anything.
    """
    schema = Scenario.model_json_schema(by_alias=True)
    complete: dict[str, Any] = {"required": schema.pop("required"), "properties": {}}
    for key, value in schema["properties"].items():
        block = schema["$defs"].get(value.get("$ref", "").rpartition("/")[2], {})
        if "required" in block:
            complete["properties"][key] = {"required": block.pop("required")}
    schema["properties"][EXTENDS] = {
        "type": "string",
        "description": "Scenario file to merge over, relative to this one.",
    }
    schema["anyOf"] = [{"required": [EXTENDS]}, complete]
    return {"$schema": JSON_SCHEMA_DIALECT, **without_null_defaults(schema)}


def without_null_defaults(schema: Any) -> Any:
    """Drop `default: null`, which only says that a key may be left out."""
    if isinstance(schema, dict):
        return {
            key: without_null_defaults(value)
            for key, value in schema.items()
            if not (key == "default" and value is None)
        }
    return [without_null_defaults(item) for item in schema] if isinstance(schema, list) else schema
