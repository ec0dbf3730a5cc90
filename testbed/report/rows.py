"""Rows of measurements by what was measured: labels, and numbers under them. Pure.

The columns of a table begin with text that says what a row is about, such as strategy and settings; the first column of
numbers ends that. Nothing here knows what the columns mean.
"""

import statistics
from collections.abc import Sequence

from testbed.record import Row

__all__ = ["Key", "identity", "key_of", "label_of", "labelled", "middle", "numbers", "percentile"]

Key = tuple[str, ...]


def identity(rows: Sequence[Row]) -> list[str]:
    """Return the columns that say what a row is about: those of text before the first of numbers."""
    columns: list[str] = []
    for name in dict.fromkeys(name for row in rows for name in row):
        if any(isinstance(row.get(name), int | float) for row in rows):
            break
        columns.append(name)
    return columns


def key_of(row: Row, columns: Sequence[str]) -> Key:
    """Return what a row is about."""
    return tuple(str(row.get(name) or "") for name in columns)


def label_of(key: Key, keys: Sequence[Key]) -> str:
    """Name what a row is about among others: parts that all of them share are left out, but for the first."""
    told = [place for place in range(len(key)) if place == 0 or len({other[place] for other in keys}) > 1]
    return " ".join(key[place] for place in told if key[place]) or "all"


def labelled(rows: Sequence[Row]) -> dict[str, Row]:
    """Return rows by label, in their order; of several with one label the last counts."""
    columns = identity(rows)
    keys = [key_of(row, columns) for row in rows]
    return {label_of(key, keys): row for key, row in zip(keys, rows, strict=True)}


def numbers(rows: Sequence[Row], column: str) -> list[float]:
    """Return the numbers of a column; rows without one are passed over."""
    values = (row.get(column) for row in rows)
    return [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]


def middle(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, interpolated between neighbours as numpy does by default."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
