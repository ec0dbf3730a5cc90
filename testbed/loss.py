"""Loss models to drop patterns. Pure and seeded.

    (seed, source, destination) --sha256--> Philox key --65,536 raw words--> model --> pattern of drops

A pattern says which packets of one directed link are lost: the packet at position k of the link, counted from 0 and
modulo the pattern's length, is dropped where `pattern[k]` is True. Raw generator words are used and not numpy's
distributions, because only the former stay the same from one numpy version to the next.

A further model is one more function from `_words` (and its own parameters) to a pattern.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["PATTERN_LENGTH", "drop_pattern", "lost_positions"]

PATTERN_LENGTH = 65_536
"""Positions in a pattern; after so many packets a link's losses repeat."""

_WORD_VALUES = 2**64


def drop_pattern(*, seed: int, source: str, destination: str, probability: float) -> NDArray[np.bool_]:
    """Return the Bernoulli pattern of the link from `source` to `destination`: bool, shape (PATTERN_LENGTH,).

    `probability` is a fraction from 0 (nothing is lost) to 1 (everything is). It is not part of the key, so a link
    that loses more loses the same packets and others: settings that differ only in their loss stay comparable.
    Raises ValueError if `probability` is not from 0 to 1.
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(
            f"drop_pattern: probability must be from 0 to 1, got {probability!r}; divide a percentage by 100"
        )
    if probability == 1.0:
        return np.ones(PATTERN_LENGTH, dtype=np.bool_)
    threshold = np.uint64(int(probability * _WORD_VALUES))  # exact: scaling by a power of two
    return _words("bernoulli", seed, source, destination) < threshold


def lost_positions(*, seed: int, source: str, destination: str, probability: float) -> list[int]:
    """Return the positions that `drop_pattern` drops, in ascending order."""
    pattern = drop_pattern(seed=seed, source=source, destination=destination, probability=probability)
    return [int(position) for position in np.flatnonzero(pattern)]


def _words(model: str, seed: int, source: str, destination: str) -> NDArray[np.uint64]:
    """Return uniform words, uint64 of shape (PATTERN_LENGTH,), of their own for every model, seed and link."""
    name = f"{model}/{seed}/{source}/{destination}".encode()
    key = int.from_bytes(hashlib.sha256(name).digest()[:16], "little")
    words: NDArray[np.uint64] = np.random.Philox(key=key).random_raw(PATTERN_LENGTH)
    return words
