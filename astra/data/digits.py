"""scikit-learn's digits: 1,797 scans of handwritten digits, 8 x 8 pixels of 17 greys. On every machine.

Split by us, since none is published: of each class, in an order drawn once for all, the first 20 % are test (359
scans), the next 10 % validation (179), the rest train (1,259).

Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998 (its test part).
"""

import numpy as np
from numpy.typing import NDArray

from astra.data.labelled import Split

__all__ = ["NUM_DIGITS", "load_digits"]

NUM_DIGITS = 10
_BRIGHTEST = 16
_SPLIT_SEED = 0
_TEST_SHARE, _VALIDATION_SHARE = 0.2, 0.1


def load_digits(split: Split) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the scans of `split` as grey on three channels [N, 3, 8, 8], 0 to 255, and their digits [N]."""
    from sklearn import datasets  # takes a second to import; other sets go without

    bunch = datasets.load_digits()
    labels = bunch.target.astype(np.int64)
    rows = _rows(labels, split)
    grey_NHW = np.rint(bunch.images[rows] * (255 / _BRIGHTEST)).astype(np.uint8)
    return np.repeat(grey_NHW[:, None], 3, axis=1), labels[rows]


def _rows(labels: NDArray[np.int64], split: Split) -> NDArray[np.intp]:
    """Return the rows of `split`, in the order of the set."""
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(labels))  # whose stream numpy promises to keep
    chosen: list[NDArray[np.intp]] = []
    for digit in range(NUM_DIGITS):
        rows = order[labels[order] == digit]
        test, validation = round(len(rows) * _TEST_SHARE), round(len(rows) * _VALIDATION_SHARE)
        parts = {"test": rows[:test], "validation": rows[test : test + validation], "train": rows[test + validation :]}
        chosen.append(parts[split])
    return np.sort(np.concatenate(chosen))
