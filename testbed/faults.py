"""Say what is wrong in an input file, in one form and in the file's own words. Pure.

    rule broken  --Fault-->  pydantic error of type "must"  --fault_line-->
    file: path.to.field must be <rule>, got <value!r>; <what to do>

Knows nothing of scenarios. The rules themselves stand beside the types they belong to.
"""

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

__all__ = ["FAULT_TYPE", "Location", "fault_at", "fault_line", "path_text", "show", "suggestion", "violation"]

FAULT_TYPE: Final = "must"
"""The pydantic error type of everything reported from here."""

Location = Sequence[str | int]
"""Keys and list positions that lead from the root of a file to a value."""

_SHOWN_CHARACTERS = 80
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_NUMBER_WITH_UNIT = re.compile(r"[-+]?[0-9.]+\s*[A-Za-z%/]+")


def violation(rule: str, todo: str, *, kind: str = "", absent: bool = False) -> PydanticCustomError:
    """Make the error to raise for a value that must be `rule`; `todo` tells the user the way out.

    `kind` (number, integer, text, list or mapping) lets the line add a hint about YAML; `absent` means that
    there is no value to show.
    """
    context = {"rule": rule, "todo": todo, "kind": kind, "absent": absent}
    return PydanticCustomError(FAULT_TYPE, "must be {rule}", context)


def fault_at(location: Location, value: object, error: PydanticCustomError) -> InitErrorDetails:
    """Attach `error` to the place it is about, relative to the block that reports it."""
    return InitErrorDetails(type=error, loc=tuple(location), input=value)


def fault_line(where: str, error: ErrorDetails) -> str:
    """Write one error of type "must", found in the file `where`, as a line."""
    context: dict[str, Any] = error["ctx"]
    value = error["input"]
    got = "nothing" if context["absent"] else show(value)
    todo = (None if context["absent"] else _yaml_hint(context["kind"], value)) or context["todo"]
    return f"{where}: {path_text(error['loc'])} must be {context['rule']}, got {got}; {todo}"


def path_text(location: Location) -> str:
    """Write a location the way a user thinks of it: `links.overrides[0].rate_mbps`."""
    text = ""
    for part in location:
        if part == "[key]":  # pydantic's mark for "the key itself, not its value"
            continue
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text or "the file"


def show(value: object) -> str:
    """Write a value on one line, cut off where it would hide the rest of the message."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def suggestion(name: object, known: Mapping[str, str]) -> str:
    """Say which known name was meant (`known` maps spellings to names), then list them all."""
    close = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.6)
    meant = f"did you mean {known[close[0]]}? " if close else ""
    return f"{meant}known here: {', '.join(dict.fromkeys(known.values()))}"


def _yaml_hint(kind: str, value: object) -> str | None:
    """Name the YAML habit behind a value of the wrong type, if there is one."""
    if value is None:
        return "an empty value is null: fill it in or remove the line"
    if kind in ("number", "integer"):
        return _number_hint(kind, value)
    if kind == "text" and not isinstance(value, str | list | dict):
        return f'put it in quotes: "{value}"'
    if kind == "list" and isinstance(value, str):
        return f"write it as a list: [{', '.join(_words(value))}]"
    if kind == "list":
        return "write it as a list: [a, b], or one item a line, each after a dash"
    if kind == "mapping":
        return "write its keys as `key: value` lines, indented below it"
    return None


def _number_hint(kind: str, value: object) -> str | None:
    if kind == "integer" and isinstance(value, float):
        return "write it without a fraction or exponent"
    if not isinstance(value, str):
        return None
    text = value.strip()
    if "_" in text and _is_number(text.replace("_", "")):
        return f"write {text.replace('_', '')}, without quotes and underscores"
    if _is_number(text):
        return f"remove the quotes: {text}"
    if "," in text and _is_number(text.replace(",", ".", 1)):
        return f"write the decimal point as a point: {text.replace(',', '.', 1)}"
    if _NUMBER_WITH_UNIT.fullmatch(text):
        return "write the number alone; the unit is in the key's name"
    return None


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", text) is not None


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # an unbalanced quotation mark
        return text.split()
