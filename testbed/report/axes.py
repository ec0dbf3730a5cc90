"""What was varied between runs: the places where their resolved scenarios differ. Pure.

scenarios --setting_axes--> dotted paths, and each run's value at each of them
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from testbed.report.surroundings import flattened

__all__ = ["Setting", "Value", "main_axis", "setting_axes"]

Value = str | int | float | bool | None
Setting = dict[str, Value]
"""Value by dotted path."""

NOT_VARIED = ("name", "expect")
PREFERRED = "links.default.rate_mbps"


def setting_axes(
    scenarios: Sequence[Mapping[str, Any]], told: Sequence[str] = ()
) -> tuple[tuple[str, ...], tuple[Setting, ...]]:
    """Return the axes, and each scenario's setting. `told` names axes in an order of their own; others are found.

    Values that are not plain (lists, mappings) are compared and shown as JSON.
    """
    leaves = [dict(flattened(scenario)) for scenario in scenarios]
    names = list(dict.fromkeys(name for flat in leaves for name in flat if name.split(".")[0] not in NOT_VARIED))
    differing = [name for name in names if len({json.dumps(flat.get(name), default=str) for flat in leaves}) > 1]
    axes = tuple(dict.fromkeys([*(name for name in told if name in differing), *([] if told else differing)]))
    return axes, tuple({name: _plain(flat.get(name)) for name in axes} for flat in leaves)


def main_axis(axes: Sequence[str], settings: Sequence[Setting]) -> str | None:
    """Choose the axis to draw along: the links' rate, or the axis with most numbers; None without any."""
    numeric = [
        name
        for name in axes
        if all(isinstance(setting[name], int | float) and not isinstance(setting[name], bool) for setting in settings)
    ]
    if PREFERRED in numeric:
        return PREFERRED
    return max(numeric, key=lambda name: len({setting[name] for setting in settings}), default=None)


def _plain(value: Any) -> Value:
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value, default=str)
