"""Drop patterns: stable, exact at the ends, and of their own for every link."""

import numpy as np
import pytest

from testbed.loss import PATTERN_LENGTH, drop_pattern, lost_positions

# A fair pattern's share of losses lies further off than this many standard deviations once in 15,000 tries, and the
# seeds are fixed.
DEVIATIONS = 4.0

GOLDEN_FORWARD = [67, 243, 547, 583, 625, 765, 812, 813, 852, 903, 923, 1350]
GOLDEN_BACKWARD = [112, 241, 303, 474, 542, 813, 1023, 1029, 1276, 1278, 1823, 1856]
GOLDEN_LOST = 615


def pattern(seed: int = 7, source: str = "d0", destination: str = "d1", probability: float = 0.01) -> np.ndarray:
    return drop_pattern(seed=seed, source=source, destination=destination, probability=probability)


def test_drop_pattern_has_one_bool_a_position() -> None:
    assert pattern().shape == (PATTERN_LENGTH,)
    assert pattern().dtype == np.bool_
    assert PATTERN_LENGTH == 65_536


def test_drop_pattern_stays_as_published() -> None:
    # Recorded once: a change here changes which packets are lost in every scenario there is.
    assert lost_positions(seed=7, source="d0", destination="d1", probability=0.01)[:12] == GOLDEN_FORWARD
    assert lost_positions(seed=7, source="d1", destination="d0", probability=0.01)[:12] == GOLDEN_BACKWARD
    assert pattern().sum() == GOLDEN_LOST


def test_drop_pattern_repeats() -> None:
    assert np.array_equal(pattern(), pattern())


@pytest.mark.parametrize("probability", [1e-4, 0.01, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
def test_drop_pattern_loses_the_share_asked_for(seed: int, probability: float) -> None:
    deviation = np.sqrt(probability * (1 - probability) / PATTERN_LENGTH)
    assert abs(pattern(seed=seed, probability=probability).mean() - probability) < DEVIATIONS * deviation


def test_drop_pattern_is_exact_at_the_ends() -> None:
    assert not pattern(probability=0.0).any()
    assert pattern(probability=1.0).all()
    assert pattern(probability=float(np.nextafter(1.0, 0.0))).sum() >= PATTERN_LENGTH - 1


@pytest.mark.parametrize("other", [{"seed": 8}, {"source": "d1", "destination": "d0"}, {"destination": "d2"}])
def test_drop_pattern_is_independent_of_other_links(other: dict[str, object]) -> None:
    # Two independent fair patterns agree in half of the positions.
    share = float(np.mean(pattern(probability=0.5) == pattern(probability=0.5, **other)))  # type: ignore[arg-type]
    assert abs(share - 0.5) < DEVIATIONS * np.sqrt(0.25 / PATTERN_LENGTH)


def test_drop_pattern_does_not_confuse_names_that_run_together() -> None:
    assert not np.array_equal(pattern(seed=1, source="d1"), pattern(seed=1, source="d", destination="1/d1"))


def test_drop_pattern_loses_no_packets_in_bursts() -> None:
    # Bernoulli: a loss follows a loss as often as it follows anything else.
    lost = pattern(probability=0.2)
    after_loss = float(lost[1:][lost[:-1]].mean())
    assert abs(after_loss - 0.2) < DEVIATIONS * np.sqrt(0.16 / lost.sum())


def test_drop_pattern_of_higher_loss_contains_the_lower() -> None:
    assert not (pattern(probability=0.01) & ~pattern(probability=0.02)).any()


def test_lost_positions_are_those_of_the_pattern() -> None:
    positions = lost_positions(seed=7, source="d0", destination="d1", probability=0.01)
    assert positions == sorted(positions)
    assert all(type(position) is int for position in positions)
    assert np.flatnonzero(pattern()).tolist() == positions


@pytest.mark.parametrize("probability", [-0.1, 1.5, float("nan")])
def test_drop_pattern_refuses_what_is_no_probability(probability: float) -> None:
    with pytest.raises(ValueError, match=r"probability must be from 0 to 1, got .*; divide a percentage by 100"):
        pattern(probability=probability)
