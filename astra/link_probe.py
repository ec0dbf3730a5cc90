"""How fast the links between ranks are, asked of the links themselves, and what CPU time their messages take.

    pair (a, b):  b ──ready──► a    a ──ping──► b ──pong──► a                     round trip, the least of three
    link a → b:   a ──empty, half──► b,   a ──empty, whole──► b                    time from the empty message's arrival
                  rate = (whole - half) ÷ (time of the whole - time of the half)
    either end:   CPU seconds a byte = (those of the whole - those of the half) ÷ (whole - half), a message from pings

Programs are told nothing of their links. The receiver measures, so clocks need not agree, and a difference of two sizes
leaves out what a link lets through at once. CPU time is the whole process's: on a slow link every packet wakes the
thread that receives, and the kernel's work for it counts, too, of which no copy in memory would tell. Sizes grow by
fours until one takes long enough. Pairs take turns such that each rank is in one pair at a time; of many ranks only
some links are measured, and the rest taken for the median.
"""

import json
import math
import statistics
import struct
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass

from astra.collectives import Collectives
from astra.overhead import forward_bytes
from astra.planning.links import LinkSpeed
from astra.traffic import PlannedMessage
from astra.transport import Tag

__all__ = ["Measured", "Prices", "measure_links", "pairs_in_turn"]

MOST_TURNS = 7
"""Of eight ranks, each pair; of more, each rank with seven others."""

SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20)
LEAST_S = 0.03
"""The whole is the least size that takes as long as this, or the largest."""

TRIPS, TRIALS = 3, 3
_SECONDS = struct.Struct("<d")

Measured = list[tuple[int, int, LinkSpeed]]
"""Source, destination and speed of links."""


@dataclass(frozen=True)
class Prices:
    """What messages cost one end of a link, in CPU seconds."""

    message_s: float
    """Each, sent or received."""
    byte_s: float
    """Each byte of payload, sent or received."""


def measure_links(collectives: Collectives, turns: int = MOST_TURNS) -> tuple[Measured, Prices | None]:
    """Measure with all ranks.

    Returns:
        On rank 0 the speed of every link, and an empty list elsewhere; and on every rank what messages cost it, or
        None if it has no peers.

    Raises:
        AstraError: A peer did not answer.
    """
    own: list[tuple[int, int, float, float]] = []
    prices: list[Prices] = []
    for turn, partner in enumerate(pairs_in_turn(collectives.rank, collectives.world_size)):
        if turn == turns:
            break
        if partner is not None:
            pair = _Pair(collectives, partner, turn)
            own += pair.measure()
            prices.append(pair.prices())
    own_prices = _typical(prices)
    packed = collectives.gather(Tag(0, 0, "probe told"), json.dumps(own).encode())
    if packed is None:
        return [], own_prices
    told = [*own, *(link for part in packed.values() for link in json.loads(bytes(part)))]
    known = {(a, b): LinkSpeed(rate_bps, delay_s) for a, b, rate_bps, delay_s in told}
    ranks = range(collectives.world_size)
    typical = LinkSpeed(
        statistics.median([speed.rate_bps for speed in known.values()] or [math.inf]),
        statistics.median([speed.delay_s for speed in known.values()] or [0.0]),
    )
    return [(a, b, known.get((a, b), typical)) for a in ranks for b in ranks if a != b], own_prices


def _typical(prices: list[Prices]) -> Prices | None:
    """Return the median of each price."""
    if not prices:
        return None
    message_s, byte_s = (statistics.median(values) for values in zip(*map(astuple, prices), strict=True))
    return Prices(message_s, byte_s)


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
        self._ping_cpu_s: list[float] = []
        self._byte_cpu_s: list[float] = []

    def prices(self) -> Prices:
        """Return what messages have cost here, after `measure`: the least of the pings, the mean of both directions."""
        return Prices(min(self._ping_cpu_s) / 2, max(statistics.fmean(self._byte_cpu_s), 0.0))

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
                begin_s = time.process_time()
                self._receive("probe ping")
                self._send("probe pong")
                self._ping_cpu_s.append(time.process_time() - begin_s)
            self._take()
            rate_bps = self._offer()
            round_trip_s = self._round_trip_s_of_other()
        if begins:
            self._send("probe trip", _SECONDS.pack(round_trip_s))
        return [(self._rank, self._partner, rate_bps, round_trip_s / 2)]

    def _round_trip_s(self) -> float:
        taken_s = []
        for _ in range(TRIPS):
            begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
            self._send("probe ping")
            self._receive("probe pong")
            taken_s.append(time.perf_counter() - begin_s)
            self._ping_cpu_s.append(time.process_time() - begin_cpu_s)
        return min(taken_s)

    def _round_trip_s_of_other(self) -> float:
        return float(_SECONDS.unpack(self._receive("probe trip"))[0])

    def _offer(self) -> float:
        """Send messages of growing size until one takes long enough; return the rate in bit/s."""
        half_s, half_cpu_s, half = 0.0, 0.0, 0
        for size in SIZES:
            trials = [self._offer_one(size) for _ in range(TRIALS)]
            whole_s, whole_cpu_s = min(taken_s for taken_s, _ in trials), min(cpu_s for _, cpu_s in trials)
            is_last = (whole_s >= LEAST_S and half > 0) or size == SIZES[-1]
            self._send("probe last", b"1" if is_last else b"")
            if is_last:
                self._byte_cpu_s.append((whole_cpu_s - half_cpu_s) / (size - half))
                extra_bytes = _on_link(size) - _on_link(half)
                return 8 * extra_bytes / max(whole_s - half_s, 1e-6)
            half_s, half_cpu_s, half = whole_s, whole_cpu_s, size
        raise AssertionError("the largest size is the last")

    def _offer_one(self, size: int) -> tuple[float, float]:
        """Return how long the other says that a message of this size took, and the CPU time that it took here."""
        payload, begin_s = bytes(size), time.process_time()
        self._send("probe empty")
        self._send("probe rate", payload)
        took = self._receive("probe took")
        return float(_SECONDS.unpack(took)[0]), time.process_time() - begin_s

    def _take(self) -> None:
        """Receive what the other offers, and say how long each message took behind the empty one before it."""
        half_cpu_s, half = 0.0, 0
        while True:
            trials_cpu_s = []
            for _ in range(TRIALS):
                begin_cpu_s = time.process_time()
                self._receive("probe empty")
                begin_s = time.perf_counter()
                size = len(self._receive("probe rate"))
                self._send("probe took", _SECONDS.pack(time.perf_counter() - begin_s))
                trials_cpu_s.append(time.process_time() - begin_cpu_s)
            if self._receive("probe last"):
                self._byte_cpu_s.append((min(trials_cpu_s) - half_cpu_s) / (size - half))
                return
            half_cpu_s, half = min(trials_cpu_s), size

    def _send(self, phase: str, payload: bytes = b"") -> None:
        self._transport.send(self._partner, Tag(0, self._turn, phase), payload)

    def _receive(self, phase: str) -> memoryview:
        return self._transport.receive(self._partner, Tag(0, self._turn, phase), self._timeout_s)


def _on_link(size: int) -> int:
    """Return the bytes of a message's frames: a link's rate is that of whatever it carries."""
    return forward_bytes(PlannedMessage(0, 0, size))
