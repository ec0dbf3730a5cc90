"""Types of the single values in a scenario: each with its range, its unit and the words for both."""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from testbed.block import Rule
from testbed.faults import violation

__all__ = [
    "DelayMs",
    "DeviceName",
    "DeviceNameOrStar",
    "FolderName",
    "LossPct",
    "QueueMs",
    "RateMbps",
    "ReorderPct",
    "Scalar",
    "Text",
    "known_names",
    "names_context",
]


def names_context(names: Sequence[str]) -> dict[str, Any]:
    """Make the pydantic validation context in which device names are checked against `names`."""
    return {"names": tuple(names)}


def known_names(info: ValidationInfo) -> tuple[str, ...]:
    """Return the scenario's device names, or nothing where the number of devices is itself at fault."""
    names: tuple[str, ...] = (info.context or {}).get("names", ())
    return names


def _check_device(value: object, info: ValidationInfo, *, wildcard: bool = False) -> object:
    names = known_names(info)
    is_name = isinstance(value, str) and re.fullmatch(r"d(0|[1-9][0-9]*)", value)
    if (wildcard and value == "*") or (value in names if names else is_name):
        return value
    rule = f"a device from {names[0]} to {names[-1]}" if len(names) > 1 else f"the device {(*names, 'd0')[0]}"
    if not names:
        rule = "a device name such as d0"
    todo = f"devices.count is {len(names)}" if is_name and names else "devices are called d0, d1, ..."
    raise violation(f'{rule} or "*" for all' if wildcard else rule, todo)


def _check_device_or_star(value: object, info: ValidationInfo) -> object:
    return _check_device(value, info, wildcard=True)


def _loss_that_a_pattern_can_hold(value: float) -> float:
    if 0 < value < 0.01:
        raise ValueError("a drop pattern has 65,536 positions")
    return value


def _check_scalar(value: object) -> object:
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise violation("text, a finite number, true or false", "write a single value")
    return value


FolderName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
    Rule(
        "1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit",
        "it names the result folder",
        "text",
    ),
]
DeviceName = Annotated[str, Field(pattern=r"^d[0-9]+$"), BeforeValidator(_check_device)]
DeviceNameOrStar = Annotated[str, Field(pattern=r"^(d[0-9]+|\*)$"), BeforeValidator(_check_device_or_star)]
RateMbps = Annotated[
    float,
    Field(ge=0.1, le=10_000),
    Rule("a number from 0.1 to 10000 or null", "it counts Mbit/s; null leaves the rate alone", "number"),
]
DelayMs = Annotated[float, Field(ge=0, le=60_000), Rule("a number from 0 to 60000", "it counts milliseconds", "number")]
QueueMs = Annotated[
    float,
    Field(gt=0, le=60_000),
    Rule("a number above 0, at most 60000", "it counts milliseconds of sending at the link's rate", "number"),
]
LossPct = Annotated[
    float,
    Field(ge=0, le=100),
    AfterValidator(_loss_that_a_pattern_can_hold),
    Rule("0 or a number from 0.01 to 100", "it counts percent: 1 is one packet in a hundred", "number"),
]
ReorderPct = Annotated[
    float,
    Field(ge=0, le=50),
    Rule("a number from 0 to 50", "it counts percent: 1 is one packet in a hundred that overtakes", "number"),
]
Text = Annotated[str, Field(pattern=r"^[^\x00]+$"), Rule("text that is not empty", "write text", "text")]
Scalar = Annotated[str | int | float | bool, BeforeValidator(_check_scalar)]
