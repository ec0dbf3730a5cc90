"""CIFAR's images as WebP files in one .npz: small to store, slow to decode, so that what is decoded is kept.

    train.npz, test.npz    arrays `data` (all WebP files, one after the other), `offsets` [N + 1], `labels` [N]

50,000 images take 6 s to decode; from the cache folder, where they are named by the file's content, 0.2 s.
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

from astra.data.pixels import READ_ERRORS
from astra.disk_cache import cache_root, check_writable
from astra.errors import ConfigError

__all__ = ["WebpImages"]

_WORTH_KEEPING = 2000
"""Images that take longer to decode (0.3 s) than the file takes to hash."""
_ARRAYS = {"data": np.uint8, "offsets": np.integer, "labels": np.integer}


class WebpImages:
    """The images of one file, of which any range can be decoded.

    Raises:
        ConfigError: The file is truncated or holds other arrays.
    """

    def __init__(self, path: Path, side: int):
        self._path, self._side = path, side
        arrays = _read(path)
        if faults := _faults(path, arrays):
            raise ConfigError(faults)
        self._data, self._offsets = arrays["data"], arrays["offsets"]
        self.labels: NDArray[np.int64] = arrays["labels"].astype(np.int64)

    def pixels(self, rows: range) -> NDArray[np.uint8]:
        """Return the images of `rows` [N, 3, S, S], from the cache or, if they are few, decoded for this once.

        Raises:
            ConfigError: Images cannot be decoded or have another size; names their rows.
        """
        if len(rows) < _WORTH_KEEPING:
            return self._decode(rows)
        with self._path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        kept = cache_root() / "images" / f"{self._path.stem}-{digest}.npy"
        if not self._is_intact(kept):
            check_writable(kept.parent)
            _publish(kept, self._decode(range(len(self.labels))))
        return np.array(np.load(kept, mmap_mode="r")[rows.start : rows.stop])

    def _decode(self, rows: range) -> NDArray[np.uint8]:
        pixels_NCHW = np.empty((len(rows), 3, self._side, self._side), np.uint8)
        faults = []
        for number, row in enumerate(rows):
            encoded = self._data[self._offsets[row] : self._offsets[row + 1]].tobytes()
            try:
                with Image.open(io.BytesIO(encoded)) as picture:
                    pixels_HWC = np.asarray(picture.convert("RGB"))
            except READ_ERRORS as error:
                faults.append(f"{self._path}: image of row {row} must be readable, got {error}; copy the file again")
                continue
            if pixels_HWC.shape == (self._side, self._side, 3):
                pixels_NCHW[number] = pixels_HWC.transpose(2, 0, 1)
                continue
            rule, found = f"{self._side} x {self._side} pixels", f"{pixels_HWC.shape[1]} x {pixels_HWC.shape[0]}"
            faults.append(f"{self._path}: image of row {row} must have {rule}, got {found}; name the set it is of")
        if faults:
            raise ConfigError(faults)
        return pixels_NCHW

    def _is_intact(self, kept: Path) -> bool:
        try:
            return bool(np.load(kept, mmap_mode="r").shape == (len(self.labels), 3, self._side, self._side))
        except (OSError, ValueError, EOFError):
            return False


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in _ARRAYS}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        rule = f"an .npz with the arrays {', '.join(_ARRAYS)}"
        raise ConfigError([f"{path}: file must be {rule}, got {error}; copy it again"]) from error


def _faults(path: Path, arrays: dict[str, NDArray[Any]]) -> list[str]:
    found = [
        f"{path}: {name} must be a row of {kind.__name__}, got {arrays[name].dtype} of shape {arrays[name].shape}; "
        "copy the file again"
        for name, kind in _ARRAYS.items()
        if arrays[name].ndim != 1 or not np.issubdtype(arrays[name].dtype, kind)
    ]
    if found:
        return found
    offsets, count, size = arrays["offsets"], len(arrays["labels"]), len(arrays["data"])
    if len(offsets) == count + 1 and offsets[0] == 0 and offsets[-1] == size and np.all(np.diff(offsets) >= 0):
        return []
    rule = f"{count + 1} rising numbers from 0 to the {size} bytes of data"
    shown = f"{len(offsets)} numbers, the last {offsets[-1:].tolist()}"
    return [f"{path}: offsets must be {rule}, got {shown}; copy the file again"]


def _publish(kept: Path, pixels_NCHW: NDArray[np.uint8]) -> None:
    """Write beside `kept`, then rename, so that no other process sees a part of it."""
    handle, written = tempfile.mkstemp(prefix=".images-", dir=kept.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, pixels_NCHW)
        Path(written).replace(kept)
    finally:
        Path(written).unlink(missing_ok=True)
