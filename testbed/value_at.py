"""A value within plain data, by dotted path: `links.default.rate_mbps`, `end.streams[0].sender.bytes`. Pure."""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["as_cell", "value_at"]


def value_at(tree: Any, path: str, absent: Any = None) -> Any:
    """Return what mappings and lists have at a path; `absent` where there is nothing."""
    value = tree
    for part in path.replace("[", ".[").split("."):
        if part.startswith("["):
            position = int(part[1:-1])
            value = value[position] if isinstance(value, list) and position < len(value) else absent
        else:
            value = value.get(part, absent) if isinstance(value, Mapping) else absent
    return value


def as_cell(value: Any) -> str | int | float | bool | None:
    """Return a value as a cell of a table: lists and mappings as JSON."""
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value
