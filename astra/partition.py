"""Which tokens belong to which rank, and which input rows a rank needs for its tokens. Pure.

    weights --split, split_by_cost--> token ranges --band--> patch rows --> (times the patch height) pixel rows

Does not know models, tensors or the network.
"""

import math
from collections.abc import Callable, Sequence

__all__ = ["band", "split", "split_by_cost"]

HALVINGS = 60
"""Of the interval in which the cost of the dearest slice is searched: to the last bit of a float."""


def split(total: int, weights: Sequence[float]) -> tuple[range, ...]:
    """Cut `range(total)` into one contiguous, non-empty slice per weight, in proportion to the weights.

    Slice lengths are the exact shares rounded by the largest remainder (ties go to the lower rank), after which the
    longest slices give a token to each slice that would be empty.

    Raises:
        ValueError: A weight is not finite and positive, or there are fewer tokens than weights.
    """
    if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"partition: weights must be finite and > 0, got {list(weights)!r}; give one per rank")
    if total < len(weights):
        raise ValueError(
            f"partition: tokens must be at least one per rank, got {total} for {len(weights)} ranks; use fewer ranks"
        )
    lengths = _largest_remainder(total, weights)
    while 0 in lengths:
        lengths[lengths.index(max(lengths))] -= 1
        lengths[lengths.index(0)] += 1
    ends = [sum(lengths[: rank + 1]) for rank in range(len(lengths))]
    return tuple(range(end - length, end) for length, end in zip(lengths, ends, strict=True))


def split_by_cost(total: int, weights: Sequence[float], cost: Callable[[range], float]) -> tuple[range, ...]:
    """Cut `range(total)` into one contiguous, non-empty slice per weight; the dearest costs as little as can be.

    A slice's cost is divided by its weight; that of a single token does not count, as no rank can have less. Found by
    halving: a limit is too low if slices that are as long as it allows, one after the other, do not reach the end.

    Args:
        total: Tokens.
        weights: One per slice.
        cost: Of a slice; greater than 0 for any token. Grows with the slice's end, but for the last slice, and
            falls with its start.

    Raises:
        ValueError: As `split`.
    """
    even = split(total, weights)
    low, high = 0.0, max(cost(tokens) / weight for tokens, weight in zip(even, weights, strict=True))
    best = even
    for _ in range(HALVINGS):
        limit = (low + high) / 2
        found = _fill(total, weights, cost, limit)
        if found is None:
            low = limit
        else:
            best, high = found, limit
    return best


def _fill(
    total: int, weights: Sequence[float], cost: Callable[[range], float], limit: float
) -> tuple[range, ...] | None:
    """Cut slices as long as the limit allows, leaving a token for each that follows; None if they end early."""
    ranges, start = list[range](), 0
    for number, weight in enumerate(weights[:-1], start=1):
        shortest, longest = start + 1, total - (len(weights) - number)
        while shortest < longest:
            stop = (shortest + longest + 1) // 2
            if cost(range(start, stop)) <= limit * weight:
                shortest = stop
            else:
                longest = stop - 1
        ranges.append(range(start, shortest))
        start = shortest
    last = range(start, total)
    return (*ranges, last) if len(last) == 1 or cost(last) <= limit * weights[-1] else None


def band(tokens: range, num_columns: int) -> range:
    """Return the rows of a grid with `num_columns` columns, numbered row by row, that hold any of `tokens`."""
    if not tokens:
        return range(0)
    return range(tokens.start // num_columns, (tokens.stop - 1) // num_columns + 1)


def _largest_remainder(total: int, weights: Sequence[float]) -> list[int]:
    """Round the shares down, then hand the tokens left over to the largest remainders."""
    whole = math.fsum(weights)
    shares = [total * (weight / whole) for weight in weights]
    lengths = [math.floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda rank: lengths[rank] - shares[rank])
    for rank in by_remainder[: total - sum(lengths)]:
        lengths[rank] += 1
    return lengths
