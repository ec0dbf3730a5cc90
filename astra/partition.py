"""Which tokens belong to which rank, and which input rows a rank needs for its tokens. Pure.

    weights --split--> token ranges --band--> patch rows --> (times the patch height) pixel rows

Does not know models, tensors or the network.
"""

import math
from collections.abc import Sequence

__all__ = ["band", "split"]


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
