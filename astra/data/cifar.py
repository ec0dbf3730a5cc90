"""CIFAR-10 and CIFAR-100: 32 x 32 colour images of 10 or 100 classes, 50,000 to train on and 10,000 to test on.

    train.npz, test.npz                       WebP files; see `webp_images`
    data_batch_1.bin ... test_batch.bin       CIFAR-10's binary version: a byte of class, 3,072 of pixels (3 planes)
    train.bin, test.bin                       CIFAR-100's: a byte of coarse class, one of fine class, 3,072 of pixels

The version "for Python" is pickled, which can run any code: it is refused. Neither set publishes a validation split:
the last 10 % of the training rows are it, and `train` is without them.

Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from astra.data.folders import absent
from astra.data.labelled import Split
from astra.data.pixels import label_faults
from astra.data.webp_images import WebpImages
from astra.errors import ConfigError

__all__ = ["VALIDATION_SHARE", "load_cifar", "rows_of"]

VALIDATION_SHARE = 0.1
_SIDE = 32
_NUM_PIXEL_BYTES = 3 * _SIDE * _SIDE
_PICKLES = ("data_batch_1", "test_batch", "train", "test")

Pictures = tuple[NDArray[np.uint8], NDArray[np.int64]]


def load_cifar(folder: Path, num_classes: int, split: Split, limit: int | None) -> Pictures:
    """Return the first `limit` images [N, 3, 32, 32] of `split` and their classes [N].

    Raises:
        ConfigError: A file is missing, truncated or not in the format; a label or an image is wrong.
    """
    packed = folder / ("test.npz" if split == "test" else "train.npz")
    if packed.is_file():
        images = WebpImages(packed, _SIDE)
        if faults := label_faults(packed, images.labels, num_classes):
            raise ConfigError(faults)
        rows = rows_of(split, len(images.labels), limit)
        return images.pixels(rows), images.labels[rows.start : rows.stop]
    pixels, labels = _read_binary(folder, num_classes, split)
    rows = rows_of(split, len(labels), limit)
    return pixels[rows.start : rows.stop], labels[rows.start : rows.stop]


def rows_of(split: Split, count: int, limit: int | None) -> range:
    """Return the first `limit` rows of `split`, where validation is the last tenth of the `count` training rows."""
    middle = count - round(count * VALIDATION_SHARE)
    rows = {"test": range(count), "train": range(middle), "validation": range(middle, count)}[split]
    return rows[:limit]


def _read_binary(folder: Path, num_classes: int, split: Split) -> Pictures:
    """Return all images of the split's files."""
    if num_classes == 100:
        names = ["test.bin" if split == "test" else "train.bin"]
    else:
        names = ["test_batch.bin"] if split == "test" else [f"data_batch_{number}.bin" for number in range(1, 6)]
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ConfigError([_missing(folder, name) for name in missing])
    num_label_bytes = 2 if num_classes == 100 else 1
    parts, faults = [], []
    for path in (folder / name for name in names):
        content = np.fromfile(path, np.uint8)
        if len(content) == 0 or len(content) % (num_label_bytes + _NUM_PIXEL_BYTES):
            rule = f"rows of {num_label_bytes + _NUM_PIXEL_BYTES} bytes"
            faults.append(f"{path}: file must be {rule}, got {len(content)} bytes in all; copy it again")
            continue
        rows = content.reshape(-1, num_label_bytes + _NUM_PIXEL_BYTES)
        faults += label_faults(path, rows[:, num_label_bytes - 1], num_classes)
        parts.append(rows)
    if faults:
        raise ConfigError(faults)
    rows = np.concatenate(parts)
    pixels = rows[:, num_label_bytes:].reshape(-1, 3, _SIDE, _SIDE)
    return pixels, rows[:, num_label_bytes - 1].astype(np.int64)


def _missing(folder: Path, name: str) -> str:
    if any((folder / pickle).is_file() for pickle in _PICKLES):
        return f"{folder / name}: file must exist, got the pickled version; take the set's binary version instead"
    return absent(folder / name, "copy the binary version there, or train.npz and test.npz")
