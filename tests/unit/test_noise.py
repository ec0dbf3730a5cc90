"""Noise has the moments of the residuals that it was fitted to, and brings codewords nearer to what they stand for."""

import pytest
import torch
from torch import Tensor

from astra.training.noise import FACTOR_INTERVAL, ResidualStatistics
from astra.training.quantiser_config import Covariance

DECAY = 0.9
ROUNDING = 1e-4  # relative; sums of fp32 in another order
SAMPLING = 0.03  # relative; 100,000 draws leave 1/316 of a standard deviation in a mean and twice that in a variance
NEARLY_EQUAL = 0.05  # share of the distance that 20,000 tokens and JITTER leave of nothing
NUM_DRAWS = 100_000


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def correlated(num_rows: int, width: int, seed: int) -> Tensor:
    """Return rows with a mean, unequal variances and correlations."""
    generator = seeded(seed)
    mixing = torch.randn(width, width, generator=generator) * torch.linspace(0.2, 1.5, width)
    return torch.randn(num_rows, width, generator=generator) @ mixing + torch.linspace(-1, 1, width)


def fitted(covariance: Covariance, residuals_RE: Tensor) -> ResidualStatistics:
    statistics = ResidualStatistics(residuals_RE.shape[1], covariance, DECAY)
    statistics.update(residuals_RE)
    return statistics


def moments(rows_RE: Tensor) -> tuple[Tensor, Tensor]:
    rows_RE = rows_RE.double()
    mean = rows_RE.mean(dim=0)
    return mean, (rows_RE - mean).t() @ (rows_RE - mean) / len(rows_RE)


def test_noise_moments_are_averages_weighted_by_age() -> None:
    batches = [correlated(50 + 10 * number, 6, number) for number in range(5)]
    weights = torch.tensor([DECAY**age for age in reversed(range(len(batches)))], dtype=torch.float64)
    weights = weights / weights.sum()
    mean = sum(weight * rows.double().mean(dim=0) for weight, rows in zip(weights, batches, strict=True))
    second = sum(
        weight * rows.double().t() @ rows.double() / len(rows) for weight, rows in zip(weights, batches, strict=True)
    )
    assert isinstance(mean, Tensor)
    for covariance in ("full", "diagonal"):
        statistics = ResidualStatistics(6, covariance, DECAY)
        for rows in batches:
            statistics.update(rows)
        expected = second - torch.outer(mean, mean)
        torch.testing.assert_close(statistics.mean.double(), mean, rtol=ROUNDING, atol=ROUNDING)
        found = statistics.covariance if covariance == "full" else statistics.covariance.diag()
        expected = expected if covariance == "full" else expected.diag().diag()
        torch.testing.assert_close(found.double(), expected, rtol=ROUNDING, atol=ROUNDING)


def test_noise_has_the_fitted_mean_and_covariance() -> None:
    residuals = correlated(4000, 8, seed=1)
    mean, covariance = moments(residuals)
    size = float(covariance.diagonal().max())
    drawn = {kind: moments(fitted(kind, residuals).sample(NUM_DRAWS, seeded(2))) for kind in ("full", "diagonal")}
    for found_mean, _ in drawn.values():
        assert float((found_mean - mean).abs().max()) < SAMPLING * size**0.5
    assert float((drawn["full"][1] - covariance).abs().max()) < SAMPLING * size
    assert float((drawn["diagonal"][1] - covariance.diag().diag()).abs().max()) < SAMPLING * size
    assert float((covariance - covariance.diag().diag()).abs().max()) > 10 * SAMPLING * size


def test_noise_follows_residuals_that_drift() -> None:
    for covariance in ("full", "diagonal"):
        statistics = ResidualStatistics(4, covariance, DECAY)
        for step in range(3 * FACTOR_INTERVAL + 1):
            statistics.update(correlated(500, 4, seed=step) * (1.0 if step < FACTOR_INTERVAL else 3.0))
        drawn = moments(statistics.sample(NUM_DRAWS, seeded(3)))
        size = float(statistics.covariance.max())
        assert float((drawn[0] - statistics.mean).abs().max()) < SAMPLING * size**0.5
        known = statistics.covariance if covariance == "full" else statistics.covariance.diag()
        assert float((drawn[1] - known).abs().max()) < SAMPLING * size


@pytest.mark.parametrize("num_rows", [1, 3])
def test_noise_of_fewer_residuals_than_numbers_lies_among_them(num_rows: int) -> None:
    residuals = correlated(num_rows, 16, seed=4)
    drawn = fitted("full", residuals).sample(1000, seeded(5))
    assert bool(drawn.isfinite().all())
    mean, covariance = moments(residuals)
    missed = torch.linalg.eigh(covariance).eigenvectors[:, : 16 - num_rows]  # across these, residuals never vary
    assert float(((drawn.double() - mean) @ missed).abs().max()) < SAMPLING * float(residuals.abs().max())


def test_noise_of_nothing_is_nothing() -> None:
    for covariance in ("full", "diagonal"):
        assert not bool(ResidualStatistics(4, covariance).sample(10, seeded(0)).any())
        assert float(fitted(covariance, torch.zeros(10, 4)).sample(10, seeded(0)).abs().max()) < 1e-12


def test_noise_goes_on_from_a_saved_state() -> None:
    """Also in the middle of the interval between two factors."""
    for covariance in ("full", "diagonal"):
        going, other = (ResidualStatistics(5, covariance, DECAY) for _ in range(2))
        for step in range(40):
            if step == 21:
                other.load_state_dict(going.state_dict())
            for statistics in (going, other) if step >= 21 else (going,):
                statistics.update(correlated(30, 5, seed=step))
        assert torch.equal(going.sample(7, seeded(6)), other.sample(7, seeded(6)))


def centroids(x_RE: Tensor, num_codewords: int) -> Tensor:
    """Return the mean of each token's cell, after some rounds of k-means."""
    codewords = x_RE[:num_codewords]
    for _ in range(20):
        codes = torch.cdist(x_RE, codewords).argmin(dim=1)
        sums = torch.zeros_like(codewords).index_add_(0, codes, x_RE)
        counts = torch.bincount(codes, minlength=num_codewords)[:, None]
        codewords = torch.where(counts > 0, sums / counts.clamp_min(1), codewords)
    return codewords[codes]


def gaussian_distance(first: Tensor, second: Tensor) -> float:
    """Return W₂ between the Gaussians with the moments of two sets of rows.

    W₂² = ‖m₁ - m₂‖² + tr(C₁ + C₂ - 2 (C₁^½ C₂ C₁^½)^½). Source: Olkin and Pukelsheim, 1982.
    """
    (mean, covariance), (other_mean, other) = moments(first), moments(second)
    root = square_root(covariance)
    cross = square_root(root @ other @ root)
    squared = (mean - other_mean).square().sum() + (covariance + other - 2 * cross).trace()
    return float(squared.clamp_min(0).sqrt())


def square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.t()) / 2)
    return vectors @ values.clamp_min(0).sqrt().diag() @ vectors.t()


@pytest.mark.parametrize("num_codewords", [4, 32, 256])
def test_theorem_31_noise_of_full_covariance_closes_the_distance(num_codewords: int) -> None:
    x = correlated(20_000, 6, seed=7)
    quantised = centroids(x, num_codewords)
    noise = fitted("full", x - quantised).sample(len(x), seeded(8))
    assert gaussian_distance(x, quantised + noise) < NEARLY_EQUAL * gaussian_distance(x, quantised)


@pytest.mark.parametrize("num_codewords", [4, 32, 256])
def test_theorem_31_noise_of_diagonal_covariance_shrinks_the_distance(num_codewords: int) -> None:
    x = correlated(20_000, 6, seed=7)
    quantised = centroids(x, num_codewords)
    noise = fitted("diagonal", x - quantised).sample(len(x), seeded(8))
    assert gaussian_distance(x, quantised + noise) < gaussian_distance(x, quantised)


def test_theorem_31_also_where_codewords_lag_behind_a_mean_that_moved() -> None:
    """Residuals with a mean of their own, as moving averages leave them: μ takes care of it."""
    x = correlated(20_000, 6, seed=7)
    lagging = centroids(x, 32) - 0.5
    for covariance in ("full", "diagonal"):
        noise = fitted(covariance, x - lagging).sample(len(x), seeded(8))
        assert gaussian_distance(x, lagging + noise) < gaussian_distance(x, lagging)


def test_theorem_31_fails_for_a_diagonal_of_fully_correlated_residuals() -> None:
    """The limit that the docstring states: one codeword, and residuals along one line through sixteen numbers."""
    x = torch.randn(20_000, 1, generator=seeded(9)).expand(-1, 16)
    distances = {kind: gaussian_distance(x, fitted(kind, x).sample(len(x), seeded(8))) for kind in ("diagonal", "full")}
    before = gaussian_distance(x, torch.zeros_like(x))
    assert distances["full"] < NEARLY_EQUAL * before
    assert distances["diagonal"] > before
