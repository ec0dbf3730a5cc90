"""Batches: every example once in a pass, the same for the same seed and step."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from astra.data import Examples
from astra.training.augment import Batches, vary
from astra.training.recipe import AugmentConfig


def images(count: int = 10) -> Examples:
    pixels = np.arange(count * 3 * 4 * 4, dtype=np.uint8).reshape(count, 3, 4, 4)
    return Examples(pixels, np.arange(count), "classification", count, ("accuracy",))


def test_pass_holds_every_example_once() -> None:
    batches = Batches(images(10), batch_size=5, seed=1, augment=AugmentConfig())
    labels = np.concatenate([batches.at(step)[1] for step in (0, 1)])
    assert sorted(labels) == list(range(10))


def test_passes_differ_in_order() -> None:
    batches = Batches(images(10), batch_size=10, seed=1, augment=AugmentConfig())
    assert not np.array_equal(batches.at(0)[1], batches.at(1)[1])


def test_same_step_gives_the_same_batch() -> None:
    course = {"batch_size": 4, "seed": 3, "augment": AugmentConfig(pad=1, flip=True)}
    one, other = (Batches(images(), **course).at(7) for _ in range(2))  # type: ignore[arg-type]
    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])


def test_images_stay_with_their_labels() -> None:
    examples = images(6)
    inputs, labels = Batches(examples, batch_size=6, seed=0, augment=AugmentConfig()).at(0)
    assert np.array_equal(inputs, examples.inputs[labels])


@given(pad=st.integers(0, 2), flip=st.booleans(), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_varied_pixels_come_from_the_image(pad: int, flip: bool, seed: int) -> None:
    pixels = images(3).inputs
    varied = vary(pixels, AugmentConfig(pad=pad, flip=flip), np.random.default_rng(seed))
    assert varied.shape == pixels.shape
    assert all(np.isin(after, before).all() for after, before in zip(varied, pixels, strict=True))


def test_shift_moves_by_at_most_pad() -> None:
    pixels = np.zeros((200, 3, 9, 9), dtype=np.uint8)
    pixels[:, :, 4, 4] = 255
    varied = vary(pixels, AugmentConfig(pad=2), np.random.default_rng(0))
    _, _, rows, columns = np.nonzero(varied)
    assert set(rows) == set(columns) == {2, 3, 4, 5, 6}


def test_flip_mirrors_about_half() -> None:
    pixels = np.tile(np.array([1, 0], dtype=np.uint8), (400, 3, 2, 1))
    varied = vary(pixels, AugmentConfig(flip=True), np.random.default_rng(0))
    mirrored = int((varied[:, 0, 0, 0] == 0).sum())
    assert 150 < mirrored < 250
