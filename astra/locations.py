"""Where in a file a fault of pydantic's lies: its location without what pydantic adds, and what may stand there. Pure.

    model Recipe, ("method", "astra", "groups")  ──resolve──►  ("method", "groups"), and what lies there: no field

pydantic puts the tag of a union behind the field that holds one. The models themselves say where there are unions, so
nothing here knows any particular config.
"""

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

__all__ = ["Path", "known_keys", "without_tags"]

Path = tuple[str | int, ...]

TAG = "name"
"""The field that tells the members of all unions apart."""


def without_tags(root: type[BaseModel], location: Path) -> Path:
    """Return the location as the file has it."""
    return _resolve(root, location)[0]


def known_keys(root: type[BaseModel], location: Path) -> Sequence[str]:
    """Return the keys that may stand in the mapping at a location; none where there is no mapping of known keys."""
    kinds = _alternatives(_resolve(root, location)[1])
    return [key for kind in kinds if _is_section(kind) for key in kind.model_fields]


def _resolve(root: type[BaseModel], location: Path) -> tuple[Path, Any]:
    """Walk down the models; return the plain location and the annotation of what lies there, or None if unknown."""
    plain: list[str | int] = []
    kind: Any = root
    for part in location:
        kinds = _alternatives(kind)
        tagged = [each for each in kinds if len(kinds) > 1 and _is_section(each) and _tag_of(each) == part]
        if tagged:
            kind = tagged[0]
            continue
        plain.append(part)
        kind = next((member for member in (_member(each, part) for each in kinds) if member is not None), None)
    return tuple(plain), kind


def _alternatives(kind: Any) -> list[Any]:
    """Return what an annotation allows, but for None."""
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [each for member in get_args(kind) for each in _alternatives(member)]
    return [] if kind is NoneType else [kind]


def _member(kind: Any, part: str | int) -> Any:
    """Return the annotation of a field, an entry of a list or a value of a mapping; None if there is none."""
    if _is_section(kind):
        field = kind.model_fields.get(part)
        return None if field is None else field.annotation
    if get_origin(kind) in (tuple, list) and isinstance(part, int):
        return get_args(kind)[0]
    return get_args(kind)[1] if get_origin(kind) in (Mapping, dict) else None


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _tag_of(kind: type[BaseModel]) -> Any:
    return kind.model_fields[TAG].default if TAG in kind.model_fields else None
