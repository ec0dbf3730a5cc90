"""How fast the links between ranks are, asked of the links themselves: round trips and rates by two sizes.

    pair (a, b):  b ──ready──► a    a ──ping──► b ──pong──► a                     round trip, the least of three
    link a → b:   a ──empty, half──► b,   a ──empty, whole──► b                    time from the empty message's arrival
                  rate = (whole - half) ÷ (time of the whole - time of the half)

Programs are told nothing of their links. The receiver measures, so clocks need not agree, and a difference of two sizes
leaves out what a link lets through at once. Sizes grow by fours until one takes long enough. Pairs take turns such that
each rank is in one pair at a time; of many ranks only some links are measured, and the rest taken for the median.
"""

import json
import math
import statistics
import struct
import time
from collections.abc import Iterator

from astra.collectives import Collectives
from astra.overhead import forward_bytes
from astra.planning.links import LinkSpeed
from astra.traffic import PlannedMessage
from astra.transport import Tag

__all__ = ["Measured", "measure_links", "pairs_in_turn"]

MOST_TURNS = 7
"""Of eight ranks, each pair; of more, each rank with seven others."""

SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20)
LEAST_S = 0.03
"""The whole is the least size that takes as long as this, or the largest."""

TRIPS, TRIALS = 3, 2
_SECONDS = struct.Struct("<d")

Measured = list[tuple[int, int, LinkSpeed]]
"""Source, destination and speed of links."""


def measure_links(collectives: Collectives, turns: int = MOST_TURNS) -> Measured:
    """Measure with all ranks; return on rank 0 the speed of every link, and an empty list elsewhere.

    Raises:
        AstraError: A peer did not answer.
    """
    own: list[tuple[int, int, float, float]] = []
    for turn, partner in enumerate(pairs_in_turn(collectives.rank, collectives.world_size)):
        if turn == turns:
            break
        if partner is not None:
            own += _Pair(collectives, partner, turn).measure()
    packed = collectives.gather(Tag(0, 0, "probe told"), json.dumps(own).encode())
    if packed is None:
        return []
    told = [*own, *(link for part in packed.values() for link in json.loads(bytes(part)))]
    known = {(a, b): LinkSpeed(rate_bps, delay_s) for a, b, rate_bps, delay_s in told}
    ranks = range(collectives.world_size)
    typical = LinkSpeed(
        statistics.median([speed.rate_bps for speed in known.values()] or [math.inf]),
        statistics.median([speed.delay_s for speed in known.values()] or [0.0]),
    )
    return [(a, b, known.get((a, b), typical)) for a in ranks for b in ranks if a != b]


def pairs_in_turn(rank: int, world_size: int) -> Iterator[int | None]:
    """Yield this rank's partner of every turn, None for a turn without one: all pairs meet once.

    Source: the circle method of tournaments; all places but the last move on by one each turn.
    """
    places = world_size + world_size % 2
    circle = places - 1
    for turn in range(circle):
        if rank == circle:
            place = turn * (places // 2) % circle
        else:
            place = (turn - rank) % circle
            place = circle if place == rank else place
        yield place if place < world_size else None


class _Pair:
    """This rank and one other, in one turn."""

    def __init__(self, collectives: Collectives, partner: int, turn: int):
        self._transport, self._timeout_s = collectives.transport, collectives.timeout_s
        self._rank, self._partner, self._turn = collectives.rank, partner, turn

    def measure(self) -> list[tuple[int, int, float, float]]:
        """Return source, destination, rate and delay of the link that begins here."""
        begins = self._rank < self._partner
        if begins:
            self._receive("probe ready")
            round_trip_s = self._round_trip_s()
            rate_bps = self._offer()
            self._take()
        else:
            self._send("probe ready")
            for _ in range(TRIPS):
                self._receive("probe ping")
                self._send("probe pong")
            self._take()
            rate_bps = self._offer()
            round_trip_s = self._round_trip_s_of_other()
        if begins:
            self._send("probe trip", _SECONDS.pack(round_trip_s))
        return [(self._rank, self._partner, rate_bps, round_trip_s / 2)]

    def _round_trip_s(self) -> float:
        taken_s = []
        for _ in range(TRIPS):
            begin_s = time.perf_counter()
            self._send("probe ping")
            self._receive("probe pong")
            taken_s.append(time.perf_counter() - begin_s)
        return min(taken_s)

    def _round_trip_s_of_other(self) -> float:
        return float(_SECONDS.unpack(self._receive("probe trip"))[0])

    def _offer(self) -> float:
        """Send messages of growing size until one takes long enough; return the rate in bit/s."""
        half_s, half = 0.0, 0
        for size in SIZES:
            whole_s = min(self._offer_one(size) for _ in range(TRIALS))
            is_last = (whole_s >= LEAST_S and half > 0) or size == SIZES[-1]
            self._send("probe last", b"1" if is_last else b"")
            if is_last:
                extra_bytes = _on_link(size) - _on_link(half)
                return 8 * extra_bytes / max(whole_s - half_s, 1e-6)
            half_s, half = whole_s, size
        raise AssertionError("the largest size is the last")

    def _offer_one(self, size: int) -> float:
        self._send("probe empty")
        self._send("probe rate", bytes(size))
        return float(_SECONDS.unpack(self._receive("probe took"))[0])

    def _take(self) -> None:
        """Receive what the other offers, and say how long each message took behind the empty one before it."""
        while True:
            for _ in range(TRIALS):
                self._receive("probe empty")
                begin_s = time.perf_counter()
                self._receive("probe rate")
                self._send("probe took", _SECONDS.pack(time.perf_counter() - begin_s))
            if self._receive("probe last"):
                return

    def _send(self, phase: str, payload: bytes = b"") -> None:
        self._transport.send(self._partner, Tag(0, self._turn, phase), payload)

    def _receive(self, phase: str) -> memoryview:
        return self._transport.receive(self._partner, Tag(0, self._turn, phase), self._timeout_s)


def _on_link(size: int) -> int:
    """Return the bytes of a message's frames: a link's rate is that of whatever it carries."""
    return forward_bytes(PlannedMessage(0, 0, size))
