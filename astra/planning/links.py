"""How long a message takes on a link: its bytes at the rate, the way there, and what TCP adds. Pure.

    bytes ──rate──► time on the link      + delay one way      + rounds of TCP's start, where the way is long
                                                               + a timeout, by the chance that its end is lost

A link carries one message after the other; links do not share anything but a device's uplink, if that is capped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from astra.overhead import SEGMENT_BYTES
from astra.traffic import PlannedMessage

__all__ = ["TIMEOUT_S", "LinkSpeed", "Links", "lost_end", "start_s"]

Matrix = NDArray[np.float64]

INITIAL_SEGMENTS = 10
"""TCP's first window. Source: RFC 6928."""

TIMEOUT_S = 0.05
"""TCP's shortest timeout, which `testbed` sets on its routes; a loss that no later packet betrays waits for it."""

DUPLICATES = 3
"""Later packets that must come for a loss to be noticed without a timeout."""


@dataclass(frozen=True)
class LinkSpeed:
    """One directed link."""

    rate_bps: float = math.inf
    delay_s: float = 0.0
    """One way."""
    loss: float = 0.0
    """Chance of a packet to be lost."""


@dataclass(frozen=True)
class Links:
    """All links: alike, or each its own."""

    default: LinkSpeed
    exceptions: tuple[tuple[int, int, LinkSpeed], ...] = ()
    """Source, destination and speed."""
    uplink_bps: float = math.inf
    """What a device can send over all its links together."""

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, int, LinkSpeed]], uplink_bps: float = math.inf) -> "Links":
        """Take the most frequent speed as the default."""
        counts: dict[LinkSpeed, int] = {}
        for _, _, speed in pairs:
            counts[speed] = counts.get(speed, 0) + 1
        default = max(counts, key=lambda speed: counts[speed], default=LinkSpeed())
        return cls(default, tuple(pair for pair in pairs if pair[2] != default), uplink_bps)

    @property
    def is_uniform(self) -> bool:
        """Whether all links are alike."""
        return not self.exceptions

    def between(self, source: int, destination: int) -> LinkSpeed:
        """Return one link."""
        return self._by_pair.get((source, destination), self.default)

    @cached_property
    def _by_pair(self) -> dict[tuple[int, int], LinkSpeed]:
        return {(source, destination): speed for source, destination, speed in self.exceptions}

    def chance_in_time(self, messages: Sequence[PlannedMessage]) -> float:
        """Return the chance that none of the messages waits for a timeout."""
        spared = 1.0
        for message in messages:
            loss = 0.0 if message.is_datagram else self.between(message.source, message.destination).loss
            spared *= (1 - lost_end(message.payload_bytes, loss)) ** message.count
        return spared

    def matrix(self, name: str, world_size: int) -> Matrix:
        """Return a property of all links, [source, destination]; a single number where all are alike."""
        if self.is_uniform:
            return np.array(getattr(self.default, name))
        values = np.full((world_size, world_size), getattr(self.default, name))
        for source, destination, speed in self.exceptions:
            values[source, destination] = getattr(speed, name)
        return values

    def instant(self) -> "Links":
        """Return links that take no time."""
        return Links(LinkSpeed())

    def unlimited(self) -> "Links":
        """Return the same delays and losses without rates."""
        exceptions = tuple((a, b, replace(speed, rate_bps=math.inf)) for a, b, speed in self.exceptions)
        return Links(replace(self.default, rate_bps=math.inf), exceptions)

    def straight(self) -> "Links":
        """Return the same rates without delays and losses."""

        def only_rate(speed: LinkSpeed) -> LinkSpeed:
            return LinkSpeed(speed.rate_bps)

        exceptions = tuple((a, b, only_rate(speed)) for a, b, speed in self.exceptions)
        return replace(self, default=only_rate(self.default), exceptions=exceptions)


def start_s(num_bytes: Matrix | float, rate_bps: Matrix | float, delay_s: Matrix | float) -> Matrix:
    """Return the time that TCP loses at each message's start, as its window grows by round trips.

    Source: slow start doubles the window each round trip until it covers the way; a window that takes w to send is
    followed by a pause of a round trip less w.
    """
    window, sent, paused = INITIAL_SEGMENTS * SEGMENT_BYTES, 0, np.zeros(())
    while np.any(is_short := (sent + window < num_bytes) & (window * 8 / rate_bps < 2 * delay_s)):
        paused = paused + np.where(is_short, 2 * delay_s - window * 8 / rate_bps, 0.0)
        sent += window
        window *= 2
    return paused


def lost_end(num_bytes: float, loss: float) -> float:
    """Return the chance that a message loses a packet of which only a timeout tells: one of its last."""
    packets = min(max(1, math.ceil(num_bytes / SEGMENT_BYTES)), DUPLICATES)
    return float(1 - (1 - loss) ** packets)
