"""Two answers to the same questions: how many flipped each way, and whether that may be chance. Pure.

                      other right   other wrong
    reference right        .           lost
    reference wrong      gained          .

Source: McNemar, Psychometrika 12 (1947), in its exact form: were both equally good, each flip would go either way with
probability 1/2, so `lost` would be binomial.
"""

from dataclasses import dataclass
from fractions import Fraction
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Flips", "flips_of", "mcnemar_p"]


@dataclass(frozen=True)
class Flips:
    """Answers that are right with one and wrong with the other."""

    lost: int
    """Right with the reference, wrong now."""
    gained: int
    """Wrong with the reference, right now."""

    @property
    def p(self) -> float:
        """McNemar's exact p."""
        return mcnemar_p(self.lost, self.gained)


def flips_of(reference_N: NDArray[Any], other_N: NDArray[Any], labels_N: NDArray[Any]) -> Flips:
    """Compare predicted classes with the reference's."""
    was_right, is_right = reference_N == labels_N, other_N == labels_N
    return Flips(int(np.sum(was_right & ~is_right)), int(np.sum(~was_right & is_right)))


def mcnemar_p(lost: int, gained: int) -> float:
    """Return the two-sided probability of flips at least as one-sided as these, if none were better than the other."""
    total = lost + gained
    tail = sum(comb(total, count) for count in range(min(lost, gained) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**total)))
