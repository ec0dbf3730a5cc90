"""Loss models to drop patterns. Pure and seeded.

    (model, seed, source, destination) --sha256--> Philox key --raw words--> model's parameters --> pattern of drops

A pattern says which packets of one directed link are lost: the packet at position k of the link, counted from 0 and
modulo the pattern's length, is dropped where `pattern[k]` is True. Raw generator words are used and not numpy's
distributions, because only the former stay the same from one numpy version to the next.

A model's parameters are not part of the key, so links that differ only in them lose comparable packets.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "NO_LOSS",
    "PATTERN_LENGTH",
    "Bernoulli",
    "GilbertElliott",
    "Loss",
    "Recorded",
    "drop_pattern",
    "lost_positions",
]

PATTERN_LENGTH = 65_536
"""Positions in a pattern that is drawn, and most that a recorded one may have; then a link's losses repeat."""

_WORD_VALUES = 2**64


@dataclass(frozen=True)
class Bernoulli:
    """Every packet is lost with the same probability, 0 to 1, whatever happened to the one before."""

    probability: float

    @property
    def mean(self) -> float:
        """Share of packets lost in the long run."""
        return self.probability


@dataclass(frozen=True)
class GilbertElliott:
    """Loss in bursts: before each packet the link may change between a good and a bad state.

    All parameters are probabilities. Source: E. O. Elliott, "Estimates of error rates for codes on burst-noise
    channels", Bell System Technical Journal 42 (1963).
    """

    enter: float
    """From good to bad; above 0."""
    leave: float
    """From bad to good; above 0."""
    bad_loss: float
    """Of losing a packet in the bad state."""
    good_loss: float = 0.0
    """Of losing a packet in the good state."""

    @property
    def bad_share(self) -> float:
        """Share of packets that meet the bad state in the long run."""
        return self.enter / (self.enter + self.leave)

    @property
    def mean(self) -> float:
        """Share of packets lost in the long run."""
        return self.bad_share * self.bad_loss + (1 - self.bad_share) * self.good_loss


@dataclass(frozen=True)
class Recorded:
    """Losses as they were recorded: one character a packet, 1 where it was lost and 0 where not; then again."""

    pattern: str

    @property
    def mean(self) -> float:
        """Share of packets lost."""
        return self.pattern.count("1") / len(self.pattern)


Loss = Bernoulli | GilbertElliott | Recorded

NO_LOSS = Bernoulli(0.0)


def drop_pattern(loss: Loss, *, seed: int, source: str, destination: str) -> NDArray[np.bool_]:
    """Return the pattern of the link from `source` to `destination`: bool, shape (PATTERN_LENGTH,).

    A recorded pattern has its own length instead, and does not depend on the seed. Raises ValueError if a probability
    is not from 0 to 1, or a recorded pattern is empty, too long or not of 0 and 1.
    """
    match loss:
        case Bernoulli(probability):
            return _below(_words("bernoulli", seed, source, destination), probability, "probability")
        case GilbertElliott():
            return _in_bursts(loss, _words("gilbert_elliott", seed, source, destination, 2 * PATTERN_LENGTH))
        case Recorded(pattern):
            if not 1 <= len(pattern) <= PATTERN_LENGTH or set(pattern) - {"0", "1"}:
                raise ValueError(f"drop_pattern: pattern must be 1 to {PATTERN_LENGTH} characters 0 and 1")
            return np.array([character == "1" for character in pattern], dtype=np.bool_)


def lost_positions(loss: Loss, *, seed: int, source: str, destination: str) -> list[int]:
    """Return the positions that `drop_pattern` drops, in ascending order."""
    pattern = drop_pattern(loss, seed=seed, source=source, destination=destination)
    return [int(position) for position in np.flatnonzero(pattern)]


def _in_bursts(loss: GilbertElliott, words: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Walk through the two states: the first half of the words moves between them, the second half loses."""
    moving, losing = words[:PATTERN_LENGTH], words[PATTERN_LENGTH:]
    if loss.enter <= 0 or loss.leave <= 0:
        raise ValueError(f"drop_pattern: enter and leave must be above 0, got {loss.enter!r} and {loss.leave!r}")
    enters = _below(moving, loss.enter, "enter").tolist()
    leaves = _below(moving, loss.leave, "leave").tolist()
    bad = bool(_below(moving[:1], loss.bad_share, "bad_share")[0])  # begins as it goes on: in the long run's shares
    states = np.empty(PATTERN_LENGTH, dtype=np.bool_)
    for position in range(PATTERN_LENGTH):
        if position:
            bad = not leaves[position] if bad else enters[position]
        states[position] = bad
    lost_in_bad, lost_in_good = _below(losing, loss.bad_loss, "bad_loss"), _below(losing, loss.good_loss, "good_loss")
    return (states & lost_in_bad) | (~states & lost_in_good)


def _below(words: NDArray[np.uint64], probability: float, name: str) -> NDArray[np.bool_]:
    """Tell for every word whether its draw comes true; exact at 0 and 1."""
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"drop_pattern: {name} must be from 0 to 1, got {probability!r}; divide a percentage by 100")
    if probability == 1.0:
        return np.ones(words.shape, dtype=np.bool_)
    return words < np.uint64(int(probability * _WORD_VALUES))  # exact: scaling by a power of two


def _words(model: str, seed: int, source: str, destination: str, count: int = PATTERN_LENGTH) -> NDArray[np.uint64]:
    """Return `count` uniform words, of their own for every model, seed and link."""
    name = f"{model}/{seed}/{source}/{destination}".encode()
    key = int.from_bytes(hashlib.sha256(name).digest()[:16], "little")
    words: NDArray[np.uint64] = np.random.Philox(key=key).random_raw(count)
    return words
