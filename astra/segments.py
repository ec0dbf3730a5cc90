"""Segment means: what a slice of tokens is reduced to, and what attention must add for it. Pure.

    rows of x ──cut into segments──► means, one a segment ──as keys──► logit + log(rows that the mean stands for)

exp(logit + log s) is s · exp(logit): one key with log s added weighs as much as s equal keys.

    legend: B batch, T tokens, D width, S segments
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from astra.partition import split

__all__ = ["count_segments", "cut_segments", "log_counts", "segment_means"]


def count_segments(num_rows: int, num_segments: int | None, compression_ratio: float | None) -> int:
    """Return how many segments a slice of `num_rows` is cut into: as many as asked for, or rows / ratio rounded down.

    Rounding down keeps the traffic at most what the ratio allows.

    Raises:
        ValueError: The slice has fewer rows than segments, or the ratio leaves it no segment at all.
    """
    if num_segments is not None:
        if num_segments > num_rows:
            raise ValueError(
                f"num_segments must be at most the {num_rows} tokens of the smallest slice, got {num_segments}; "
                "ask for fewer segments or use fewer devices"
            )
        return num_segments
    assert compression_ratio is not None, "one of the two is given; the config sees to it"
    if compression_ratio > num_rows:
        raise ValueError(
            f"compression_ratio must be at most the {num_rows} tokens of the smallest slice, got "
            f"{compression_ratio:g}; ask for less compression or use fewer devices"
        )
    return math.floor(num_rows / compression_ratio)


def cut_segments(num_rows: int, num_segments: int) -> tuple[range, ...]:
    """Cut rows into contiguous segments whose lengths differ by at most one, the longer ones first."""
    return split(num_rows, [1.0] * num_segments)


def segment_means(x_BTD: Tensor, segments: Sequence[range]) -> Tensor:
    """Return the mean of each segment's rows, [B, S, D]."""
    lengths = torch.tensor([len(segment) for segment in segments])
    segment_of_row = torch.repeat_interleave(torch.arange(len(segments)), lengths)
    sums_BSD = x_BTD.new_zeros(x_BTD.shape[0], len(segments), x_BTD.shape[2]).index_add_(1, segment_of_row, x_BTD)
    return sums_BSD / lengths[:, None]


def log_counts(segments: Sequence[range]) -> Tensor:
    """Return what is added to the logit of each segment's mean, [S]: the logarithm of the rows it stands for."""
    return torch.tensor([float(len(segment)) for segment in segments]).log()
