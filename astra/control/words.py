"""What rank 0 and the others say to one another about who takes part, as msgpack. Pure.

    rank r ──["report", …] | ["bye"] | ["failed", why]──► rank 0
    rank r ◄──["beat"] | ["gone", ranks, why] | ["recall", why] | ["fail", why] | ["epoch", …] | ["end"]── rank 0

Ranks are those that processes were started with; an epoch's members are numbered anew, in order, among themselves.
What cannot be read is None, for the receiver to drop.
"""

from typing import Any, NamedTuple

import msgpack

__all__ = ["MESSAGE_LIMIT_BYTES", "Epoch", "Report", "Word", "pack", "unpack_report", "unpack_word"]

MESSAGE_LIMIT_BYTES = 1 << 16
"""More than a report about 256 ranks."""

STATES = ("loading", "free", "serving")


class Report(NamedTuple):
    """What a rank says of itself."""

    rank: int
    life: str
    """Another one each time its process starts."""
    device: str
    address: str
    """On the data network."""
    state: str
    """`loading`; `free`: has nothing to do until an epoch begins; `serving`."""
    epoch: int
    """The one it last took part in; -1 for none."""
    waits_for: dict[int, float]
    """Peers it waits for, and for how many seconds each has been silent meanwhile."""
    doing: str
    """What it waits for."""
    sent: dict[int, int]
    """Frames to each peer in this epoch."""
    received: dict[int, int]


class Epoch(NamedTuple):
    """A stretch of the run with the same members."""

    number: int
    members: tuple[int, ...]
    addresses: tuple[str, ...]
    """On the data network, one a member."""
    port: int
    """Where the first member awaits the others."""
    job: int
    """Where to go on: strategy, its request (those to warm up first), and the number that tags it."""
    request: int
    message: int

    def place_of(self, rank: int) -> int:
        """Return a member's rank within the epoch."""
        return self.members.index(rank)


class Word(NamedTuple):
    """Something that rank 0 tells."""

    kind: str
    ranks: tuple[int, ...] = ()
    why: str = ""
    epoch: Epoch | None = None


def pack(*fields: Any) -> bytes:
    """Turn a word and what belongs to it into bytes."""
    packed: bytes = msgpack.packb(fields)
    return packed


def unpack_report(packed: bytes) -> Report | str | None:
    """Read what a rank says: a report, or why it leaves ("" if it is through); None if it is neither."""
    match _fields(packed):
        case ["bye"]:
            return ""
        case ["failed", str(why)]:
            return why or "no reason given"
        case [
            "report",
            int(rank),
            str(life),
            str(device),
            str(address),
            str(state),
            int(epoch),
            dict(waits_for),
            *rest,
        ]:
            match rest:
                case [str(doing), dict(sent), dict(received)] if state in STATES and all(
                    _numbers(each) for each in (waits_for, sent, received)
                ):
                    return Report(rank, life, device, address, state, epoch, waits_for, doing, sent, received)
    return None


def unpack_word(packed: bytes) -> Word | None:
    """Read what rank 0 says; None if it is nothing of the kind."""
    match _fields(packed):
        case [("beat" | "end") as kind]:
            return Word(kind)
        case ["gone", list(ranks), str(why)] if all(type(rank) is int for rank in ranks):
            return Word("gone", tuple(ranks), why)
        case [("recall" | "fail") as kind, str(why)]:
            return Word(kind, why=why)
        case ["epoch", int(number), list(members), list(addresses), int(port), int(job), int(request), int(index)]:
            if all(type(rank) is int for rank in members) and len(members) == len(addresses):
                epoch = Epoch(number, tuple(members), tuple(map(str, addresses)), port, job, request, index)
                return Word("epoch", epoch=epoch)
    return None


def _fields(packed: bytes) -> list[Any]:
    try:
        fields = msgpack.unpackb(packed, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException):
        return []
    return fields if isinstance(fields, list) else []


def _numbers(told: dict[Any, Any]) -> bool:
    """Whether these are numbers by rank."""
    return all(type(rank) is int and type(value) in (int, float) for rank, value in told.items())
