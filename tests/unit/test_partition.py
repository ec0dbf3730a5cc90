"""Splits cover all tokens once, follow the weights, and bands cover the tokens of a split."""

from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra.partition import band, split, split_by_cost

weight_lists = st.lists(st.floats(min_value=0.01, max_value=100.0), min_size=1, max_size=8)


@given(total=st.integers(8, 5000), weights=weight_lists)
def test_split_covers_every_token_once_in_order(total: int, weights: list[float]) -> None:
    ranges = split(total, weights)
    assert len(ranges) == len(weights)
    assert [token for tokens in ranges for token in tokens] == list(range(total))
    assert all(ranges)


@given(total=st.integers(1000, 5000), weights=st.lists(st.floats(1.0, 10.0), min_size=1, max_size=8))
def test_split_is_within_one_token_of_the_exact_share(total: int, weights: list[float]) -> None:
    for tokens, weight in zip(split(total, weights), weights, strict=True):
        assert abs(len(tokens) - total * weight / sum(weights)) < 1.0 + 1e-6


@given(total=st.integers(8, 5000), num_ranks=st.integers(1, 8))
def test_split_of_equal_weights_differs_by_one_at_most_and_favours_low_ranks(total: int, num_ranks: int) -> None:
    lengths = [len(tokens) for tokens in split(total, [1.0] * num_ranks)]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


def test_split_gives_a_token_to_ranks_whose_share_rounds_to_none() -> None:
    assert [len(tokens) for tokens in split(4, [100.0, 0.01, 0.01, 0.01])] == [1, 1, 1, 1]


@pytest.mark.parametrize("weights", [[], [1.0, 0.0], [1.0, -1.0], [float("nan")], [float("inf"), 1.0]])
def test_split_refuses_weights_that_are_not_positive(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=r"partition: weights must be finite and > 0, got .*; give one per rank"):
        split(10, weights)


def test_split_refuses_fewer_tokens_than_ranks() -> None:
    with pytest.raises(ValueError, match="at least one per rank, got 3 for 4 ranks; use fewer ranks"):
        split(3, [1.0] * 4)


def triangle(tokens: range) -> float:
    """Each token costs as much as there are up to it."""
    return sum(range(tokens.start + 1, tokens.stop + 1))


@given(total=st.integers(8, 60), weights=st.lists(st.floats(0.1, 10.0), min_size=1, max_size=3))
def test_split_by_cost_is_the_best_there_is(total: int, weights: list[float]) -> None:
    def dearest(ranges: Sequence[range]) -> float:
        pairs = zip(ranges, weights, strict=True)
        return max((triangle(tokens) / weight for tokens, weight in pairs if len(tokens) > 1), default=0.0)

    found = split_by_cost(total, weights, triangle)
    assert [token for tokens in found for token in tokens] == list(range(total))
    assert all(found)
    ends = [(*cuts, total) for cuts in combinations(range(1, total), len(weights) - 1)]
    best = min(dearest([range(*each) for each in pairwise((0, *stops))]) for stops in ends)
    assert dearest(found) <= best * (1 + 1e-9)


def test_split_by_cost_of_one_price_is_a_split_by_count() -> None:
    assert [len(tokens) for tokens in split_by_cost(1024, [1.0] * 4, lambda tokens: float(len(tokens)))] == [256] * 4


def test_split_by_cost_gives_a_token_to_ranks_that_can_do_next_to_nothing() -> None:
    assert [len(tokens) for tokens in split_by_cost(9, [100.0, 0.001, 100.0], triangle)][1] == 1


def test_split_by_cost_refuses_fewer_tokens_than_ranks() -> None:
    with pytest.raises(ValueError, match="at least one per rank, got 3 for 4 ranks; use fewer ranks"):
        split_by_cost(3, [1.0] * 4, triangle)


@given(start=st.integers(0, 500), length=st.integers(1, 500), num_columns=st.integers(1, 40))
def test_band_is_the_smallest_that_covers(start: int, length: int, num_columns: int) -> None:
    tokens = range(start, start + length)
    rows = band(tokens, num_columns)
    assert {token // num_columns for token in tokens} == set(rows)


def test_band_of_no_tokens_is_empty() -> None:
    assert len(band(range(7, 7), 4)) == 0
