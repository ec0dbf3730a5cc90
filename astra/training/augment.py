"""Batches of training examples: which ones, in what order, and how images are varied. Pure.

    (seed, epoch) --> order of the examples        (seed, step) --> shift and mirror of every image

All follows from the seed and the step alone, so that a training that is taken up again goes on as if it had never
stopped.

    legend: N images, H rows, W columns
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astra.data import Examples
from astra.training.recipe import AugmentConfig

__all__ = ["Batches", "vary"]

_ORDER, _VARIATION = 0, 1


@dataclass(frozen=True)
class Batches:
    """The training set in an endless order, batch by batch."""

    examples: Examples
    batch_size: int
    seed: int
    augment: AugmentConfig

    def __post_init__(self) -> None:
        assert len(self.examples.inputs) >= self.batch_size, "checked when the examples are loaded"

    @property
    def per_epoch(self) -> int:
        """Whole batches in one pass over the examples; the rest of a pass is left out."""
        return len(self.examples.inputs) // self.batch_size

    def at(self, step: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return inputs and labels of the step-th batch."""
        epoch, place = divmod(step, self.per_epoch)
        order_N = np.random.default_rng([self.seed, _ORDER, epoch]).permutation(len(self.examples.inputs))
        chosen = order_N[place * self.batch_size : (place + 1) * self.batch_size]
        inputs, labels = self.examples.inputs[chosen], self.examples.labels[chosen]
        if inputs.ndim == 4:
            inputs = vary(inputs, self.augment, np.random.default_rng([self.seed, _VARIATION, step]))
        return inputs, labels


def vary(images_NCHW: NDArray[np.uint8], augment: AugmentConfig, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Move every image by up to `pad` pixels (what comes in is mirrored at the edge), and mirror about half of them."""
    count, _, height, width = images_NCHW.shape
    if augment.pad:
        sides = ((0, 0), (0, 0), (augment.pad, augment.pad), (augment.pad, augment.pad))
        padded = np.pad(images_NCHW, sides, mode="reflect")
        rows_NH = generator.integers(0, 2 * augment.pad, (count, 1), endpoint=True) + np.arange(height)
        columns_NW = generator.integers(0, 2 * augment.pad, (count, 1), endpoint=True) + np.arange(width)
        numbers = np.arange(count)[:, None, None]
        images_NHWC = padded.transpose(0, 2, 3, 1)[numbers, rows_NH[:, :, None], columns_NW[:, None, :]]
        images_NCHW = images_NHWC.transpose(0, 3, 1, 2)
    if augment.flip:
        mirrored_N111 = generator.integers(0, 2, (count, 1, 1, 1)).astype(bool)
        images_NCHW = np.where(mirrored_N111, images_NCHW[..., ::-1], images_NCHW)
    return np.ascontiguousarray(images_NCHW)
