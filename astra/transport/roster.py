"""What ranks tell one another when they meet, as msgpack: who they are and where they can be reached. Pure.

What cannot be read is nothing, for the receiver to drop.
"""

import ipaddress
from typing import Any, NamedTuple

import msgpack

__all__ = ["Entry", "Place", "Roster", "pack", "read_entry", "read_roster", "unpack"]


class Place(NamedTuple):
    """Where and how many: the same for all ranks but for `rank`."""

    rank: int
    world_size: int
    master_addr: str
    master_port: int

    def __str__(self) -> str:
        return f"{self.master_addr}:{self.master_port}"


class Entry(NamedTuple):
    """Where a rank can be reached: its data address, and a port for each higher rank."""

    address: str
    ports: dict[int, int]


class Roster(NamedTuple):
    """Every rank's entry, and the token that marks this run's frames."""

    token: int
    entries: dict[int, Entry]


def pack(*fields: Any) -> bytes:
    """Make a message."""
    packed: bytes = msgpack.packb(fields)
    return packed


def unpack(body: bytes) -> list[Any]:
    """Read a message of the rendezvous; an empty list if it is not one."""
    try:
        fields = msgpack.unpackb(body, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException):
        return []
    return fields if isinstance(fields, list) else []


def read_entry(address: object, ports: object, ranks: range) -> Entry | None:
    """Read where a rank can be reached; None unless it says so in full: a port for each of `ranks`, and no more."""
    if not isinstance(address, str) or not isinstance(ports, dict) or set(ports) != set(ranks):
        return None
    if not all(type(port) is int and 0 < port < 65536 for port in ports.values()):
        return None
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        return None
    return Entry(address, ports)


def read_roster(token: int, told: dict[Any, Any], world_size: int) -> Roster | None:
    """Read the roster; None if it does not name every rank."""
    if not 0 <= token < 2**32 or set(told) != set(range(world_size)):
        return None
    entries = dict[int, Entry]()
    for rank, fields in told.items():
        address, ports = fields if isinstance(fields, list) and len(fields) == 2 else (None, None)
        entry = read_entry(address, ports, range(rank + 1, world_size))
        if entry is None:
            return None
        entries[rank] = entry
    return Roster(token, entries)
