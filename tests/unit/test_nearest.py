"""The nearest codeword is found whatever the bounds leave, and most of the product is saved where they leave little."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from astra import nearest
from astra.nearest import NearestCodeword

WIDTH, NUM_CODEWORDS = 264, 96
NEAR_TIE = 1e-5  # relative to |u| |c|: two scores closer than fp32 can tell apart


def clustered(num_rows: int, spread: float, directions: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return rows around codewords that lie in few directions, as activations do."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.randn(directions, WIDTH, generator=generator)
    codewords_Kd = torch.randn(NUM_CODEWORDS, directions, generator=generator) @ axes + 3.0
    chosen = torch.randint(NUM_CODEWORDS, (num_rows,), generator=generator)
    return codewords_Kd[chosen] + spread * torch.randn(num_rows, WIDTH, generator=generator), codewords_Kd


def check(u_Rd: Tensor, codewords_Kd: Tensor) -> None:
    codes_R = torch.from_numpy(NearestCodeword(codewords_Kd)(u_Rd))
    assert codes_R.shape == (len(u_Rd),)
    distances_RK = torch.cdist(u_Rd.double(), codewords_Kd.double()).square()
    chosen_R = distances_RK.gather(1, codes_R[:, None])[:, 0]
    scale_R = u_Rd.double().norm(dim=1) * float(codewords_Kd.norm(dim=1).max())
    assert (chosen_R <= distances_RK.amin(dim=1) + NEAR_TIE * scale_R).all()


@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(0, 60),
    spread=st.sampled_from([0.0, 1e-3, 0.3, 3.0, 30.0]),
    directions=st.sampled_from([2, 20, WIDTH]),
    seed=st.integers(0, 10_000),
)
def test_nearest_codeword_is_that_of_brute_force(num_rows: int, spread: float, directions: int, seed: int) -> None:
    check(*clustered(num_rows, spread, directions, seed))


@pytest.mark.parametrize("most_left", [0.0, 1.0])
def test_both_ways_find_the_same(most_left: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "MOST_LEFT", most_left)
    check(*clustered(50, 1.0, 20, 7))


def test_the_lowest_among_equal_codewords_is_taken_also_where_bounds_decide() -> None:
    u_Rd, codewords_Kd = clustered(40, 0.1, 5, 3)
    twice_Kd = torch.cat((codewords_Kd, codewords_Kd))
    finder = NearestCodeword(twice_Kd)
    assert finder._axes_dm is not None
    codes_R = finder._by_bounds(u_Rd, finder._axes_dm)
    assert codes_R is not None, "two of each are left"
    assert (codes_R < NUM_CODEWORDS).all()


def test_bounds_leave_little_where_codewords_lie_in_few_directions() -> None:
    u_Rd, codewords_Kd = clustered(40, 0.1, 20, 5)
    finder = NearestCodeword(codewords_Kd)
    assert finder._axes_dm is not None
    assert finder._by_bounds(u_Rd, finder._axes_dm) is not None


def test_where_bounds_leave_too_much_the_product_is_taken() -> None:
    u_Rd, codewords_Kd = clustered(40, 30.0, WIDTH, 5)
    finder = NearestCodeword(codewords_Kd)
    assert finder._axes_dm is not None
    assert finder._by_bounds(u_Rd, finder._axes_dm) is None
    check(u_Rd, codewords_Kd)


def test_zero_rows_and_zero_codewords_do_no_harm() -> None:
    check(torch.zeros(3, WIDTH), torch.cat((torch.zeros(1, WIDTH), torch.randn(5, WIDTH))))
