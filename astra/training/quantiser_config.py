"""How codebooks are trained: a frozen and strict pydantic model. Pure, and free of torch."""

from typing import Literal

from pydantic import Field

from astra.strategy_config import QuantisedSection

__all__ = ["ClassTokens", "Covariance", "QuantiserConfig"]

Covariance = Literal["diagonal", "full"]
"""Whether noise has a variance per number, or a covariance between all numbers of a token."""

ClassTokens = Literal["distributed", "single"]
"""One copy of the class token per device, averaged at the end; or one token of device 0, quantised for the others."""


class QuantiserConfig(QuantisedSection):
    """Grouped codebooks, one set per layer, that follow a model while it is trained.

    Source: ASTRA, arXiv 2505.19342, for β, λ and the two kinds of covariance; van den Oord et al., arXiv 1711.00937,
    appendix A.1, for moving averages.
    """

    beta: float = Field(default=5e-4, gt=0)
    """Weight of the commitment loss; the paper uses 1e-4, 2e-4 and 5e-4."""
    noise: float = Field(default=1.0, ge=0)
    """The paper's λ: standard deviations of noise that is added to codewords, in training only; 0 for none."""
    covariance: Covariance = "diagonal"
    ema_decay: float = Field(default=0.99, gt=0, lt=1)
    """Share of the past that is kept at each step, of codewords and of what noise is fitted to."""
    revive_below: float = Field(default=0.01, ge=0, lt=1)
    """A codeword used less often than this share of the average is replaced by a token at hand; 0 replaces none."""
    class_tokens: ClassTokens = "distributed"
