"""Locations of pydantic's against those of a file, for every kind of nesting that configs have."""

from collections.abc import Mapping
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from astra.locations import Path, known_keys, without_tags


class Cat(BaseModel):
    name: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    name: Literal["dog"] = "dog"
    friend: "Annotated[Cat | Dog, Field(discriminator='name')] | None" = None


Pet = Annotated[Cat | Dog, Field(discriminator="name")]


class House(BaseModel):
    cat: Cat = Cat()
    best: Pet | None = None
    pets: tuple[Pet, ...] = ()
    rooms: Mapping[str, Pet] = {}
    sizes: tuple[int, ...] | Literal["even"] = "even"


@pytest.mark.parametrize(
    ("location", "plain"),
    [
        (("cat", "lives"), ("cat", "lives")),
        (("best", "dog", "friend", "cat", "lives"), ("best", "friend", "lives")),
        (("pets", 2, "cat"), ("pets", 2)),
        (("pets", 2, "cat", "unknown"), ("pets", 2, "unknown")),
        (("rooms", "cat", "dog", "friend"), ("rooms", "cat", "friend")),
        (("sizes", 1), ("sizes", 1)),
        (("unknown", "cat", 3), ("unknown", "cat", 3)),
        ((), ()),
    ],
)
def test_location_loses_the_tags_of_unions_and_nothing_else(location: Path, plain: Path) -> None:
    assert without_tags(House, location) == plain


@pytest.mark.parametrize(
    ("location", "keys"),
    [
        ((), ["cat", "best", "pets", "rooms", "sizes"]),
        (("cat",), ["name", "lives"]),
        (("rooms", "hall", "dog"), ["name", "friend"]),
        (("pets", 0, "dog", "friend", "cat"), ["name", "lives"]),
        (("rooms",), []),
        (("sizes", 0), []),
        (("unknown",), []),
    ],
)
def test_known_keys_are_those_of_the_section_there(location: Path, keys: list[str]) -> None:
    assert list(known_keys(House, location)) == keys
