"""Dotted paths into a scenario: `links.default.rate_mbps`, `workload.config.strategies[1].num_groups`. Pure."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from testbed.faults import Location, path_text, show

__all__ = ["PATH_PATTERN", "PathError", "last_words", "parse_path", "replaced"]

_KEY = r"[A-Za-z_][A-Za-z0-9_-]*"
PATH_PATTERN = rf"^{_KEY}(\[[0-9]+\])*(\.{_KEY}(\[[0-9]+\])*)*$"
_PART = re.compile(rf"({_KEY})|\[([0-9]+)\]")


class PathError(ValueError):
    """A path that leads nowhere. `must_be`, `got` and `todo` are the parts of a fault's line."""

    def __init__(self, must_be: str, got: str, todo: str):
        super().__init__(f"must be {must_be}, got {got}; {todo}")
        self.must_be, self.got, self.todo = must_be, got, todo


def parse_path(text: str) -> tuple[str | int, ...]:
    """Return the keys and list positions of a path. Raises PathError."""
    if not re.fullmatch(PATH_PATTERN, text):
        raise PathError("a path such as links.default.rate_mbps or a.list[0].b", show(text), "join keys by dots")
    return tuple(key if key else int(position) for key, position in _PART.findall(text))


def replaced(tree: Mapping[Any, Any], location: Location, value: Any) -> dict[Any, Any]:
    """Return the tree with the value at a location, whose mappings are made where they are absent; raise PathError."""
    changed: dict[Any, Any] = _replaced(tree, tuple(location), value, ())
    return changed


def _replaced(tree: Any, rest: tuple[str | int, ...], value: Any, before: tuple[str | int, ...]) -> Any:
    if not rest:
        return value
    part, here = rest[0], path_text(before)
    if isinstance(part, int):
        if not isinstance(tree, list):
            raise PathError(f"a path into the base scenario, where {here} has items", show(tree), "remove the [number]")
        if part >= len(tree):
            todo = "positions begin at 0"
            raise PathError(f"a path into the base scenario, where {here} has {len(tree)} items", f"[{part}]", todo)
        return [_replaced(each, rest[1:], value, (*before, part)) if n == part else each for n, each in enumerate(tree)]
    if tree is not None and not isinstance(tree, Mapping):
        raise PathError(f"a path into the base scenario, where {here} has keys", show(tree), "correct the path")
    known = tree or {}
    return {**known, part: _replaced(known.get(part), rest[1:], value, (*before, part))}


def last_words(paths: Sequence[str]) -> dict[str, str]:
    """Shorten each path to as many of its last keys as tell it from the others."""
    shortened = {}
    for path in paths:
        words, others = path.split("."), [other.split(".") for other in paths if other != path]
        count = next((n for n in range(1, len(words)) if all(other[-n:] != words[-n:] for other in others)), len(words))
        shortened[path] = ".".join(words[-count:])
    return shortened
