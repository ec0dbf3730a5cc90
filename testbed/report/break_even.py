"""Where distribution starts to win: at what rate a curve of speed-ups crosses 1. Pure.

    (rate, speed-up), ... --crossings--> rates at which the curve passes 1, up or down
                          --describe---> "from 23.4 Mbps", "up to 80 Mbps", "at every rate", "at no rate"

Between two measured rates the curve is taken for a straight line over the logarithm of the rate; beyond them nothing is
claimed.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Crossing", "crossings", "describe"]


@dataclass(frozen=True)
class Crossing:
    """A place where a curve passes the level."""

    at: float
    upwards: bool


def crossings(curve: Sequence[tuple[float, float]], level: float = 1.0) -> list[Crossing]:
    """Return where a curve of (x, y) passes `level`, in order of x. All x must be greater than 0."""
    found = []
    for (x0, y0), (x1, y1) in itertools.pairwise(sorted(curve)):
        if (y0 >= level) != (y1 >= level):
            share = (level - y0) / (y1 - y0)
            at = math.exp(math.log(x0) + share * (math.log(x1) - math.log(x0)))
            found.append(Crossing(at, upwards=y1 >= level))
    return found


def describe(curve: Sequence[tuple[float, float]], unit: str, level: float = 1.0) -> str:
    """Say in words where a curve is at `level` or above it."""
    ordered = sorted(curve)
    if not ordered:
        return "not measured"
    passed = crossings(ordered, level)
    if not passed:
        return "at every value measured" if ordered[0][1] >= level else "at none measured"
    begins: list[float | None] = [None] if ordered[0][1] >= level else []
    begins += [crossing.at for crossing in passed if crossing.upwards]
    ends = [crossing.at for crossing in passed if not crossing.upwards]
    return ", ".join(_stretch(begin, end, unit) for begin, end in itertools.zip_longest(begins, ends))


def _stretch(begin: float | None, end: float | None, unit: str) -> str:
    if begin is None:
        return f"up to {end:.3g} {unit}"
    return f"from {begin:.3g} {unit}" if end is None else f"from {begin:.3g} to {end:.3g} {unit}"
