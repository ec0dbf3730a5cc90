"""How long what is left of a sweep will take. Pure.

A run is expected to take as long as the finished runs whose cells are most like its own: those that share most values.
Before any has finished, it takes what the sweep file says (`cell_s`), or nobody knows.
"""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Estimate", "duration_text"]


@dataclass
class Estimate:
    """What is known of durations."""

    first_guess_s: float | None = None
    _seen: list[tuple[Mapping[str, Any], float]] = field(default_factory=list)

    def add(self, values: Mapping[str, Any], duration_s: float) -> None:
        """Take note of a run of the cell with these values."""
        self._seen.append((values, duration_s))

    def of(self, values: Mapping[str, Any]) -> float | None:
        """Return the seconds that a run of the cell with these values may take; None where nothing is known."""
        if not self._seen:
            return self.first_guess_s
        alike = [sum(known.get(path) == value for path, value in values.items()) for known, _ in self._seen]
        return statistics.fmean(
            seconds for (_, seconds), same in zip(self._seen, alike, strict=True) if same == max(alike)
        )

    def total(self, left: Iterable[Mapping[str, Any]]) -> float | None:
        """Return the seconds that runs of these cells may take together."""
        each = [self.of(values) for values in left]
        return None if None in each else sum(seconds for seconds in each if seconds is not None)


def duration_text(seconds: float | None) -> str:
    """Write a duration as roughly as it is known."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
