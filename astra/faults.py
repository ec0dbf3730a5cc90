"""Validation errors of pydantic, said in this project's words. Pure.

    ValidationError --render--> ["bench.json: model.size must be one of tiny, small, base, got 'big'; choose"]

Knows pydantic's error types, and nothing of any particular config.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from astra.locations import Path, known_keys, without_tags

__all__ = ["Path", "dotted", "fault", "render", "rule_error", "suggestion"]

_SHOWN_CHARACTERS = 80

_RULES: dict[str, tuple[str, str]] = {
    "int_type": ("a whole number", "write it without quotes and without a point"),
    "float_type": ("a number", "write it without quotes"),
    "finite_number": ("a finite number", "give a number"),
    "string_type": ("text", "put it in quotes"),
    "model_type": ("a mapping of keys to values", "see the keys in the documentation"),
    "tuple_type": ("a list", "put the entries in [ ]"),
    "greater_than": ("greater than {gt}", "give a larger number"),
    "greater_than_equal": ("at least {ge}", "give a larger number"),
    "less_than_equal": ("at most {le}", "give a smaller number"),
    "too_short": ("a list of at least {min_length}", "add an entry"),
    "string_too_short": ("text of at least {min_length} character", "fill it in or leave the key out"),
}


def fault(where: str, path: Path, rule: str, value: object, advice: str) -> str:
    """Put one fault into the house format."""
    shown = repr(value)
    if len(shown) > _SHOWN_CHARACTERS:
        shown = shown[: _SHOWN_CHARACTERS - 3] + "..."
    return f"{where}: {dotted(path)} must be {rule}, got {shown}; {advice}"


def rule_error(rule: str, advice: str) -> PydanticCustomError:
    """Make the error that a validator raises so that `render` can say its rule and what to do."""
    return PydanticCustomError("rule", "{rule}; {advice}", {"rule": rule, "advice": advice})


def suggestion(value: object, known: Sequence[str]) -> str:
    """Say what to write instead of `value`: the nearest known name, or all of them."""
    close = difflib.get_close_matches(str(value), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def render(where: str, error: ValidationError, root: type[BaseModel]) -> list[str]:
    """Say every fault of `error` in a file that was read as a `root`.

    A list whose entries are all faulty is not called too short.
    """
    return [
        _render_one(where, details, root)
        for details in error.errors(include_url=False)
        if not (details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"])
    ]


def _render_one(where: str, details: ErrorDetails, root: type[BaseModel]) -> str:
    location, value, kind = tuple(details["loc"]), details["input"], details["type"]
    path, context = without_tags(root, location), details.get("ctx", {})
    if kind == "missing":
        return f"{where}: {dotted(path)} must be given, got nothing; add the key {location[-1]!r}"
    if kind == "extra_forbidden":
        advice = suggestion(location[-1], known_keys(root, location[:-1]))
        return fault(where, path[:-1], "a mapping without unknown keys", location[-1], advice)
    if kind == "union_tag_not_found":
        return f"{where}: {dotted((*path, 'name'))} must be given, got nothing; add the key 'name'"
    if kind == "union_tag_invalid":
        return _unknown_name(where, (*path, "name"), context["tag"], context["expected_tags"])
    if kind == "literal_error":
        return _unknown_name(where, path, value, context["expected"].replace(" or ", ", "))
    rule, advice = _rule(kind, context, details["msg"])
    return fault(where, path, rule, value, advice)


def _rule(kind: str, context: Mapping[str, Any], message: str) -> tuple[str, str]:
    if kind == "rule":
        return context["rule"], context["advice"]
    if kind not in _RULES:
        return f"valid ({message})", "correct it"
    rule, advice = _RULES[kind]
    return rule.format(**context), advice


def _unknown_name(where: str, path: Path, value: object, expected: str) -> str:
    known = [name.strip(" '") for name in expected.split(",")]
    close = difflib.get_close_matches(str(value), known, n=1)
    advice = f"did you mean {close[0]!r}?" if close else "choose one of them"
    rule = f"one of {', '.join(known)}" if len(known) > 1 else f"{known[0]!r}"
    return fault(where, path, rule, value, advice)


def dotted(path: Path) -> str:
    """Write a location as it is written in messages: `strategies[1].wire`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the file"
