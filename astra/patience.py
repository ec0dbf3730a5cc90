"""How long a rank waits for its peers' rows of a layer. Pure.

    own rows leave ──────► peers' rows arrive              offset: from the one to the other, noted for every message
                   └─ limit = median of offsets + slack ─┘     or `deadline_ms`, where that is given
                      slack = `slack_ms`, or, where that is not given, a multiple of the offsets' usual spread

An offset holds everything that delays rows: their size over the rate, the link's delay, and how far the peer's
computing is behind this rank's. So no link has to be known beforehand, and a slower peer is waited for. The median of
what came, late or not, does not care for a few rows that came late because their sender had itself waited for lost
ones. Layer 0 has a median of its own: its rows wait for the word that starts the request, and for the input. Until a
peer's first rows have come there is no median: use a warm-up request.

The spread is that of the middle half of all offsets, for the same reason: losses spread the rest. Devices that keep
step are so waited for no longer than they ever take, and those that do not are given up to `MOST_SLACK_MS`.

A rank that has waited in vain sends its next rows late by just the time for which its peers wait for them, so that one
loss would make others of a chance. Slack, or the deadline, therefore grows from layer to layer: who has waited in layer
l is waited for in layer l + 1.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import quantiles

from astra.transport_config import MOST_SLACK_MS, DatagramConfig

__all__ = ["FIRST_LIMIT_S", "Patience"]

MOST_SLACK_S = MOST_SLACK_MS / 1000

FIRST_LIMIT_S = 1.0
"""Wait for rows of a peer from which none have come."""

GROWTH = 0.1
"""Share by which slack, or the deadline, grows from layer to layer."""

REMEMBERED = 32
"""Offsets that a median is taken of."""


SPREADS = 2
"""Slack is so many times the range of the middle half of the offsets: of a bell curve, that is 2.7 deviations."""

LEAST_SLACK_S = 0.003
"""Slack where all have kept step so far: what a scheduler may take."""

FEWEST_OFFSETS = 8
"""Offsets that a spread is taken of; with fewer, slack is the most it may be."""


@dataclass
class _Offsets:
    """The last offsets of one peer, and what follows from them."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    median_s: float = 0.0
    spread_s: float | None = None
    """Range of the middle half; None as long as there are too few."""

    def note(self, offset_s: float) -> None:
        """Take one more."""
        self.seconds.append(offset_s)
        few = len(self.seconds) == 1
        lower_s, self.median_s, upper_s = [offset_s] * 3 if few else quantiles(self.seconds, n=4, method="inclusive")
        self.spread_s = upper_s - lower_s if len(self.seconds) >= FEWEST_OFFSETS else None


class Patience:
    """One rank's waiting, for one strategy."""

    def __init__(self, config: DatagramConfig):
        self._config = config
        self._offsets: dict[tuple[int, bool], _Offsets] = {}

    def limit_s(self, peer: int, layer: int) -> float:
        """Return how long after its own rows of a layer have left a rank may wait for the peer's."""
        growth = 1 + GROWTH * layer
        if self._config.deadline_ms is not None:
            return self._config.deadline_ms / 1000 * growth
        offsets = self._offsets.get((peer, layer == 0))
        if offsets is None:
            return FIRST_LIMIT_S
        return max(0.0, offsets.median_s) + self._slack_s(offsets.spread_s) * growth

    def note(self, peer: int, layer: int, offset_s: float) -> None:
        """Take how long after its own rows those of the peer came; less than 0 if they were first."""
        self._offsets.setdefault((peer, layer == 0), _Offsets()).note(offset_s)

    def _slack_s(self, spread_s: float | None) -> float:
        if self._config.slack_ms is not None:
            return self._config.slack_ms / 1000
        if spread_s is None:
            return MOST_SLACK_S
        return min(max(LEAST_SLACK_S, SPREADS * spread_s), MOST_SLACK_S)
