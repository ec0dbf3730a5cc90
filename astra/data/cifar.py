"""CIFAR-10 and CIFAR-100: 32 x 32 colour images of 10 or 100 classes, 50,000 to train on and 10,000 to test on.

    train.npz, test.npz       arrays `data` (all WebP files, one after the other), `offsets` [N + 1], `labels` [N]

Neither set publishes a validation split: the last 10 % of the training rows are it, and `train` is without them.
Decoded images are kept in the cache folder, named by the file's content: 50,000 WebP take 7 s, what is kept 0.2 s.

Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

import hashlib
import io
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from astra.data.labelled import Split
from astra.data.pixels import label_faults
from astra.disk_cache import cache_root, check_writable
from astra.errors import ConfigError

__all__ = ["load_cifar"]

SIDE = 32
VALIDATION_SHARE = 0.1
_WORTH_KEEPING = 2000
"""Images that take longer to decode (0.3 s) than the file takes to hash."""
_ARRAYS = {"data": np.uint8, "offsets": np.integer, "labels": np.integer}


def load_cifar(
    folder: Path, num_classes: int, split: Split, limit: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the first `limit` images [N, 3, 32, 32] of `split` and their classes [N].

    Raises:
        ConfigError: A file is missing, truncated or not in the format; a label or an image is wrong.
    """
    path = folder / ("test.npz" if split == "test" else "train.npz")
    if not path.is_file():
        raise ConfigError([f"{path}: file must exist, got nothing; name the folder that holds train.npz and test.npz"])
    arrays = _read_npz(path)
    labels = arrays["labels"].astype(np.int64)
    if faults := _shape_faults(path, arrays) or label_faults(path, labels, num_classes):
        raise ConfigError(faults)
    rows = _rows(len(labels), split, limit)
    return _decoded(path, arrays, rows), labels[rows.start : rows.stop]


def _rows(count: int, split: Split, limit: int | None) -> range:
    """Return the rows of `split` in the file that holds it."""
    middle = count - round(count * VALIDATION_SHARE)
    rows = {"test": range(count), "train": range(middle), "validation": range(middle, count)}[split]
    return rows[:limit]


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in _ARRAYS}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(
            [f"{path}: file must be an .npz with the arrays {', '.join(_ARRAYS)}, got {error}; copy it again"]
        ) from error


def _shape_faults(path: Path, arrays: dict[str, NDArray[Any]]) -> list[str]:
    found = [
        f"{path}: {name} must be a row of {kind.__name__}, got {arrays[name].dtype} of shape {arrays[name].shape}; "
        "copy the file again"
        for name, kind in _ARRAYS.items()
        if arrays[name].ndim != 1 or not np.issubdtype(arrays[name].dtype, kind)
    ]
    if found:
        return found
    offsets, count = arrays["offsets"], len(arrays["labels"])
    if (
        len(offsets) != count + 1
        or offsets[0] != 0
        or offsets[-1] != len(arrays["data"])
        or np.any(np.diff(offsets) < 0)
    ):
        rule = f"{count + 1} rising numbers from 0 to the {len(arrays['data'])} bytes of data"
        return [f"{path}: offsets must be {rule}, got {offsets[:3]}...{offsets[-1:]}; copy the file again"]
    return []


def _decoded(path: Path, arrays: dict[str, NDArray[Any]], rows: range) -> NDArray[np.uint8]:
    """Return the images of `rows`, from the cache or, if they are few, decoded for this once."""
    if len(rows) < _WORTH_KEEPING:
        return _decode(path, arrays, rows)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    kept = cache_root() / "images" / f"{path.stem}-{digest}.npy"
    count = len(arrays["labels"])
    if not _is_intact(kept, count):
        check_writable(kept.parent)
        _publish(kept, _decode(path, arrays, range(count)))
    return np.array(np.load(kept, mmap_mode="r")[rows.start : rows.stop])


def _decode(path: Path, arrays: dict[str, NDArray[Any]], rows: range) -> NDArray[np.uint8]:
    pixels_NCHW = np.empty((len(rows), 3, SIDE, SIDE), np.uint8)
    offsets, data = arrays["offsets"], arrays["data"]
    faults = []
    for number, row in enumerate(rows):
        try:
            with Image.open(io.BytesIO(data[offsets[row] : offsets[row + 1]].tobytes())) as picture:
                pixels_HWC = np.asarray(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            faults.append(f"{path}: image of row {row} must be readable, got {error}; copy the file again")
            continue
        if pixels_HWC.shape != (SIDE, SIDE, 3):
            faults.append(
                f"{path}: image of row {row} must have {SIDE} x {SIDE} pixels, got {pixels_HWC.shape[:2]}; "
                "name the set that the file is of"
            )
            continue
        pixels_NCHW[number] = pixels_HWC.transpose(2, 0, 1)
    if faults:
        raise ConfigError(faults)
    return pixels_NCHW


def _is_intact(kept: Path, count: int) -> bool:
    try:
        return bool(np.load(kept, mmap_mode="r").shape == (count, 3, SIDE, SIDE))
    except (OSError, ValueError, EOFError):
        return False


def _publish(kept: Path, pixels_NCHW: NDArray[np.uint8]) -> None:
    """Write beside `kept`, then rename, so that no other process sees a part of it."""
    handle, written = tempfile.mkstemp(prefix=".images-", dir=kept.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, pixels_NCHW)
        Path(written).replace(kept)
    finally:
        Path(written).unlink(missing_ok=True)
