"""Pixels of labelled images: to the model's size, and checks of labels that all image sets share."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["label_faults", "resize"]

_SHOWN_ROWS = 5


def resize(pixels_NCHW: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return images [N, 3, S, S] in `side` x `side` pixels, bicubic; those of that size as they are."""
    if pixels_NCHW.shape[-2:] == (side, side):
        return pixels_NCHW
    resized = np.empty((len(pixels_NCHW), 3, side, side), np.uint8)
    for number, pixels_CHW in enumerate(pixels_NCHW):
        picture = Image.fromarray(np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0)))
        resized[number] = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    return resized


def label_faults(where: Path, labels: NDArray[Any], num_labels: int) -> list[str]:
    """Name the rows whose label is no class."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_labels))
    return [
        f"{where}: label of row {row} must be from 0 to {num_labels - 1}, got {int(labels[row])}; "
        "correct the row or name the set that the file is of"
        for row in wrong[:_SHOWN_ROWS]
    ]
