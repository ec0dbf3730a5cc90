"""Noise like that of quantisation: a Gaussian fitted to running residuals, for training only.

    u, û ──► residual r = u - û ──running moments──► μ, Σ ──► ξ ~ N(μ, Σ)         trained on: û + λξ

    legend: R rows (tokens), E numbers of a token

A model that is fine-tuned on û + λξ sees inputs spread as those it was trained on, and not only K points.

Theorem 3.1 of the paper, as we take it. Write N(Z) for the Gaussian with mean and covariance of Z, W₂ for the
Wasserstein distance, X for what is quantised, X̂ for its codeword, R = X - X̂, and ξ ~ N(E R, Cov R), independent of X̂.
Then

    W₂(N(X), N(X̂ + ξ)) ≤ W₂(N(X), N(X̂)),  and the left side is 0,  if residuals are uncorrelated with codewords.

Proof. X̂ + ξ has the mean E X̂ + E R = E X. Its covariance is Cov X̂ + Cov R, and Cov X is that plus
Cov(X̂, R) + Cov(R, X̂), which the premise makes 0. So both Gaussians are the same, and W₂ ≥ 0 on the right. ∎

The premise holds for codewords that are the means of their cells: E[R | X̂] = 0, as after k-means and, nearly, with
moving averages. Only a full Σ makes the two equal. A diagonal one gets the mean and every variance right but not the
covariances: where residuals are strongly correlated over many numbers, it can even widen the distance (a rank-one
Cov R over more than four numbers of equal variance and X̂ constant; tested).

Source: Noise-Augmented Vector Quantisation of ASTRA, arXiv 2505.19342. Ours: moments are moving averages with the
codebook's decay, corrected for their start at zero; the root of a full Σ is taken anew only every few updates.
"""

from typing import Any

import torch
from torch import Tensor, nn

from astra.training.quantiser_config import Covariance

__all__ = ["FACTOR_INTERVAL", "ResidualStatistics"]

FACTOR_INTERVAL = 16
"""Updates between two Cholesky factors of a full Σ, which moves by a hundredth a step: a factor for 768 numbers takes
as long as the noise itself."""

JITTER = 1e-5
"""Added to the diagonal of a full Σ before it is factored, as a share of its mean variance: fewer residuals than
numbers, or numbers that never vary, leave it singular."""


class ResidualStatistics(nn.Module):
    """Running mean and covariance of residuals; its state is all in buffers, in fp32."""

    moment_E: Tensor
    second_moment: Tensor
    weight: Tensor
    factor_EE: Tensor | None
    num_updates: Tensor

    def __init__(self, width: int, covariance: Covariance = "diagonal", decay: float = 0.99):
        super().__init__()
        self._full = covariance == "full"
        self._decay = decay
        self._num_updates = 0  # as `num_updates`, but known without waiting for a GPU
        self.register_buffer("moment_E", torch.zeros(width))
        self.register_buffer("second_moment", torch.zeros(width, width) if self._full else torch.zeros(width))
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("factor_EE", torch.zeros(width, width) if self._full else None)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_post_hook(_recount)  # type: ignore[no-untyped-call]

    @property
    def mean(self) -> Tensor:
        """Mean of the residuals; 0 before the first update."""
        return self.moment_E / self._weight_or_1

    @property
    def covariance(self) -> Tensor:
        """Variances [E], or the covariance matrix [E, E]."""
        second = self.second_moment / self._weight_or_1
        mean_E = self.mean
        return second - torch.outer(mean_E, mean_E) if self._full else (second - mean_E.square()).clamp_min(0)

    @torch.no_grad()
    def update(self, residuals_RE: Tensor) -> None:
        """Move the moments towards those of these rows, by 1 - decay."""
        residuals_RE = residuals_RE.float()
        if self._full:
            second = residuals_RE.t() @ residuals_RE / len(residuals_RE)
        else:
            second = residuals_RE.square().mean(dim=0)
        self.moment_E.lerp_(residuals_RE.mean(dim=0), 1 - self._decay)
        self.second_moment.lerp_(second, 1 - self._decay)
        self.weight.lerp_(torch.ones_like(self.weight), 1 - self._decay)
        self.num_updates += 1
        if self.factor_EE is not None and self._num_updates % FACTOR_INTERVAL == 0:
            self.factor_EE.copy_(_factor(self.covariance))
        self._num_updates += 1

    @torch.no_grad()
    def sample(self, num_rows: int, generator: torch.Generator) -> Tensor:
        """Draw ξ_RE; with a full Σ, its mean is up to date and its covariance at most `FACTOR_INTERVAL` updates old."""
        mean_E = self.mean
        standard_RE = torch.randn(num_rows, len(mean_E), generator=generator, device=mean_E.device)
        if self.factor_EE is not None:
            return torch.addmm(mean_E, standard_RE, self.factor_EE.t())
        return standard_RE.mul_(self.covariance.sqrt()).add_(mean_E)

    @property
    def _weight_or_1(self) -> Tensor:
        """The moments start at zero; this is how much of them is data."""
        return torch.where(self.weight > 0, self.weight, 1.0)


def _factor(covariance_EE: Tensor) -> Tensor:
    """Return L with L Lᵀ = Σ plus jitter; L of the variances alone where rounding has left no such matrix."""
    variances_E = covariance_EE.diagonal().clamp_min(0)
    jitter = JITTER * variances_E.mean() + torch.finfo(covariance_EE.dtype).tiny
    factor_EE, failed = torch.linalg.cholesky_ex(covariance_EE + jitter.expand_as(variances_E).diag())
    return torch.where(failed == 0, factor_EE, variances_E.sqrt().diag())


def _recount(module: nn.Module, _: Any) -> None:
    """Read off a loaded state how many updates it has seen."""
    assert isinstance(module, ResidualStatistics)
    module._num_updates = int(module.num_updates)
