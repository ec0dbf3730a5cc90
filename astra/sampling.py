"""From the scores of a vocabulary to the next token: the best one, or one drawn by a seed. Pure.

The number that a draw needs follows from seed, request and step alone, not from what was drawn before: whichever rank
has the scores of a step can draw, and every strategy that computes the same scores draws the same tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Sampler"]


@dataclass(frozen=True)
class Sampler:
    """How tokens are chosen."""

    temperature: float = 0.0
    """Divides the scores before the softmax; 0 always takes the best."""
    top_k: int | None = None
    """Draw among this many best tokens; None for all."""
    seed: int = 0

    def choose(self, logits_C: Tensor, request: int, step: int) -> int:
        """Return the token for step `step` of request number `request`; among equals the lowest."""
        if self.temperature == 0:
            return int(logits_C.argmax())
        scores_C = logits_C.double() / self.temperature
        if self.top_k is not None and self.top_k < len(scores_C):
            least = scores_C.topk(self.top_k).values[-1]
            scores_C = scores_C.masked_fill(scores_C < least, -torch.inf)
        reached_C = torch.softmax(scores_C, dim=0).cumsum(dim=0)
        drawn = np.random.default_rng([self.seed, request, step]).random() * float(reached_C[-1])
        return int(torch.searchsorted(reached_C, drawn, right=True))
