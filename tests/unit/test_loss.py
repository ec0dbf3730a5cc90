"""Drop patterns: stable, exact at the ends, and of their own for every link."""

import numpy as np
import pytest

from testbed.loss import PATTERN_LENGTH, Bernoulli, GilbertElliott, Recorded, drop_pattern, lost_positions

# A fair pattern's share of losses lies further off than this many standard deviations once in 15,000 tries, and the
# seeds are fixed.
DEVIATIONS = 4.0

GOLDEN_FORWARD = [67, 243, 547, 583, 625, 765, 812, 813, 852, 903, 923, 1350]
GOLDEN_BACKWARD = [112, 241, 303, 474, 542, 813, 1023, 1029, 1276, 1278, 1823, 1856]
GOLDEN_LOST = 615
GOLDEN_BURSTS = [12, 13, 14, 31, 378, 379, 428, 429]


def pattern(seed: int = 7, source: str = "d0", destination: str = "d1", probability: float = 0.01) -> np.ndarray:
    return drop_pattern(Bernoulli(probability), seed=seed, source=source, destination=destination)


def test_drop_pattern_has_one_bool_a_position() -> None:
    assert pattern().shape == (PATTERN_LENGTH,)
    assert pattern().dtype == np.bool_
    assert PATTERN_LENGTH == 65_536


def test_drop_pattern_stays_as_published() -> None:
    # Recorded once: a change here changes which packets are lost in every scenario there is.
    assert lost_positions(Bernoulli(0.01), seed=7, source="d0", destination="d1")[:12] == GOLDEN_FORWARD
    assert lost_positions(Bernoulli(0.01), seed=7, source="d1", destination="d0")[:12] == GOLDEN_BACKWARD
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
    positions = lost_positions(Bernoulli(0.01), seed=7, source="d0", destination="d1")
    assert positions == sorted(positions)
    assert all(type(position) is int for position in positions)
    assert np.flatnonzero(pattern()).tolist() == positions


@pytest.mark.parametrize("probability", [-0.1, 1.5, float("nan")])
def test_drop_pattern_refuses_what_is_no_probability(probability: float) -> None:
    with pytest.raises(ValueError, match=r"probability must be from 0 to 1, got .*; divide a percentage by 100"):
        pattern(probability=probability)


# Bursts

BURSTY = GilbertElliott(enter=0.01, leave=0.3, bad_loss=0.8, good_loss=0.001)


def bursts(loss: GilbertElliott = BURSTY, seed: int = 7, source: str = "d0", destination: str = "d1") -> np.ndarray:
    return drop_pattern(loss, seed=seed, source=source, destination=destination)


def runs(lost: np.ndarray) -> np.ndarray:
    """Lengths of the runs of lost packets."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], lost, [False]]).astype(int)))
    return edges[1::2] - edges[::2]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "loss",
    [BURSTY, GilbertElliott(0.001, 0.05, 1.0), GilbertElliott(0.2, 0.5, 0.5, 0.1)],
    ids=["mixed", "long", "both"],
)
def test_bursts_lose_the_stationary_share(loss: GilbertElliott, seed: int) -> None:
    # Of a two-state chain: neighbours correlate by (1 - enter - leave)^distance, which widens the mean's spread.
    memory = 1 - loss.enter - loss.leave
    in_states = loss.bad_share * (1 - loss.bad_share) * (loss.bad_loss - loss.good_loss) ** 2
    variance = loss.mean * (1 - loss.mean) + 2 * in_states * memory / (1 - memory)
    assert abs(bursts(loss, seed).mean() - loss.mean) < DEVIATIONS * np.sqrt(variance / PATTERN_LENGTH)


@pytest.mark.parametrize("leave", [0.05, 0.3, 1.0])
def test_bursts_last_as_long_as_the_bad_state(leave: float) -> None:
    # All is lost in the bad state and nothing else: a run of losses is a stay there, geometric with mean 1 / leave.
    lengths = runs(bursts(GilbertElliott(enter=0.01, leave=leave, bad_loss=1.0)))
    deviation = np.sqrt(1 - leave) / leave / np.sqrt(len(lengths))
    assert abs(lengths.mean() - 1 / leave) <= DEVIATIONS * deviation


def test_bursts_without_memory_are_bernoulli_like() -> None:
    # enter + leave = 1: the next state does not depend on this one, so a loss follows a loss as often as anything.
    lost = bursts(GilbertElliott(enter=0.2, leave=0.8, bad_loss=1.0))
    assert abs(float(lost[1:][lost[:-1]].mean()) - 0.2) < DEVIATIONS * np.sqrt(0.16 / lost.sum())


def test_bursts_stay_as_published() -> None:
    assert lost_positions(BURSTY, seed=7, source="d0", destination="d1")[:8] == GOLDEN_BURSTS


@pytest.mark.parametrize("other", [{"seed": 8}, {"source": "d1", "destination": "d0"}, {"destination": "d2"}])
def test_bursts_are_of_their_own_for_every_link(other: dict[str, object]) -> None:
    assert not np.array_equal(bursts(), bursts(**other))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "loss", [GilbertElliott(0.0, 0.3, 0.8), GilbertElliott(0.1, 0.0, 0.8), GilbertElliott(0.1, 0.3, 1.2)]
)
def test_bursts_refuse_parameters_that_are_none(loss: GilbertElliott) -> None:
    with pytest.raises(ValueError, match="drop_pattern: "):
        bursts(loss)


# Recordings


def test_recorded_pattern_is_the_recording_whatever_the_link() -> None:
    assert lost_positions(Recorded("01001"), seed=7, source="d0", destination="d1") == [1, 4]
    pattern = drop_pattern(Recorded("01001"), seed=8, source="d3", destination="d2")
    assert pattern.tolist() == [False, True, False, False, True]
    assert Recorded("01001").mean == pattern.mean()


@pytest.mark.parametrize("pattern", ["", "012", "0" * (PATTERN_LENGTH + 1)])
def test_recorded_pattern_refuses_what_is_no_recording(pattern: str) -> None:
    with pytest.raises(ValueError, match="characters 0 and 1"):
        drop_pattern(Recorded(pattern), seed=7, source="d0", destination="d1")
