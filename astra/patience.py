"""How long a rank waits for its peers' rows of a layer. Pure.

    own rows leave ──────► peers' rows arrive              offset: from the one to the other, noted for every message
                   └─ limit = median of offsets + slack ─┘     or `deadline_ms`, where that is given

An offset holds everything that delays rows: their size over the rate, the link's delay, and how far the peer's
computing is behind this rank's. So no link has to be known beforehand, and a slower peer is waited for. The median of
what came, late or not, does not care for a few rows that came late because their sender had itself waited for lost
ones. Layer 0 has a median of its own: its rows wait for the word that starts the request, and for the input. Until a
peer's first rows have come there is no median: use a warm-up request.

A rank that has waited in vain sends its next rows late by just the time for which its peers wait for them, so that one
loss would make others of a chance. Slack, or the deadline, therefore grows from layer to layer: who has waited in layer
l is waited for in layer l + 1.
"""

from collections import deque
from statistics import median

from astra.transport_config import DatagramConfig

__all__ = ["FIRST_LIMIT_S", "Patience"]

FIRST_LIMIT_S = 1.0
"""Wait for rows of a peer from which none have come."""

GROWTH = 0.1
"""Share by which slack, or the deadline, grows from layer to layer."""

REMEMBERED = 32
"""Offsets that a median is taken of."""


class Patience:
    """One rank's waiting, for one strategy."""

    def __init__(self, config: DatagramConfig):
        self._config = config
        self._offsets_s: dict[tuple[int, bool], deque[float]] = {}

    def limit_s(self, peer: int, layer: int) -> float:
        """Return how long after its own rows of a layer have left a rank may wait for the peer's."""
        growth = 1 + GROWTH * layer
        if self._config.deadline_ms is not None:
            return self._config.deadline_ms / 1000 * growth
        offsets_s = self._offsets_s.get((peer, layer == 0))
        if offsets_s is None:
            return FIRST_LIMIT_S
        return max(0.0, median(offsets_s)) + self._config.slack_s * growth

    def note(self, peer: int, layer: int, offset_s: float) -> None:
        """Take how long after its own rows those of the peer came; less than 0 if they were first."""
        self._offsets_s.setdefault((peer, layer == 0), deque(maxlen=REMEMBERED)).append(offset_s)
