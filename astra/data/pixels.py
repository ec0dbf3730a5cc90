"""Pixels of labelled images: read from files, brought to the model's size, and the check of labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from astra.errors import ConfigError

__all__ = ["READ_ERRORS", "label_faults", "read_pictures", "resize", "to_square"]

READ_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a file that is no image, or a damaged one."""
_SHOWN_ROWS = 5


def resize(pixels_NCHW: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return square images [N, 3, S, S] in `side` x `side` pixels, bicubic; those of that size as they are."""
    if pixels_NCHW.shape[-2:] == (side, side):
        return pixels_NCHW
    resized = np.empty((len(pixels_NCHW), 3, side, side), np.uint8)
    for number, pixels_CHW in enumerate(pixels_NCHW):
        picture = Image.fromarray(np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0)))
        resized[number] = to_square(picture, side)
    return resized


def to_square(picture: Image.Image, side: int, share: float = 1.0) -> NDArray[np.uint8]:
    """Return the centred square, of which `share` of the side is kept, in `side` x `side` pixels [3, S, S], bicubic."""
    kept = max(1, round(min(picture.size) * share))
    left, top = (picture.width - kept) // 2, (picture.height - kept) // 2
    square = picture.convert("RGB").crop((left, top, left + kept, top + kept))
    pixels: NDArray[np.uint8] = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    return pixels


def read_pictures(paths: Sequence[Path], side: int, share: float = 1.0) -> NDArray[np.uint8]:
    """Read image files to [N, 3, S, S]; see `to_square`.

    Raises:
        ConfigError: Some cannot be read; names each.
    """
    pixels_NCHW = np.empty((len(paths), 3, side, side), np.uint8)
    faults = []
    for number, path in enumerate(paths):
        try:
            with Image.open(path) as picture:
                pixels_NCHW[number] = to_square(picture, side, share)
        except READ_ERRORS as error:
            faults.append(f"{path}: image must be readable, got {error}; repair it or remove it from the folder")
    if faults:
        raise ConfigError(faults)
    return pixels_NCHW


def label_faults(where: Path, labels: NDArray[Any], num_labels: int) -> list[str]:
    """Name the first rows whose label is no class."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_labels))
    return [
        f"{where}: label of row {row} must be from 0 to {num_labels - 1}, got {int(labels[row])}; "
        "correct the row or name the set that the file is of"
        for row in wrong[:_SHOWN_ROWS]
    ]
