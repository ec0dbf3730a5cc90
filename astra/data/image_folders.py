"""Photographs in folders: ImageNet-1k as it is published, and one's own with a folder for each class.

    imagenet   train/<wnid>/*.JPEG    val/<wnid>/*.JPEG, or val/*.JPEG and one of
                                          val.txt                                       name and number of class a line
                                          LOC_val_solution.csv                          name, wnid and boxes a line
                                          imagenet_2012_validation_synset_labels.txt    a wnid a line, in order of names
    images     train/<class>/*, validation/<class>/* (or val, valid), test/<class>/*
               or <class>/*: of each class, by name, the last 10 % test, the 10 % before them validation, the rest train

Classes are numbered by the order of their folders' names, which is ImageNet's usual order. Examples take turns among
the classes, so that the first of them are of all. ImageNet's `validation` is its val; labels of its test images are
not published. Of ImageNet's photographs the centred square of 224/256 of the shorter side is read, of others all of it.

Source: Russakovsky et al., arXiv 1409.0575; the crop is that of Krizhevsky et al., 2012, with one crop.
"""

from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from astra.config_file import IMAGE_SUFFIXES
from astra.data.folders import absent, read_lines, unlabelled
from astra.data.labelled import Split
from astra.data.pixels import label_faults, read_pictures
from astra.errors import ConfigError

__all__ = ["IMAGENET_SHARE", "LabelledPictures", "check_size", "load_imagenet", "load_own_images"]

IMAGENET_SHARE = 224 / 256
_SHARE = 0.1
"""Of one's own images, for validation and as many for test, where there are no folders for them."""
_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
_MOST_BYTES = 8 * 10**9
"""What examples may take in memory: ImageNet's 50,000 validation images of 224 pixels fit."""

LabelledPictures = tuple[NDArray[np.uint8], NDArray[np.int64], int]
"""Pixels [N, 3, S, S], classes [N], and how many classes there are."""
_Named = list[tuple[Path, int]]


def load_imagenet(named: Path, folder: Path, split: Split, side: int, limit: int | None) -> LabelledPictures:
    """Return the first `limit` images of `split`; labels of a flat `val` lie in `folder`, in it or in `named`.

    Raises:
        ConfigError: Folders, labels or images are missing or wrong.
    """
    if split == "test":
        raise unlabelled(folder, "imagenet")
    place = folder / ("train" if split == "train" else "val")
    if not place.is_dir():
        raise ConfigError([absent(place, "extract ImageNet's archives there")])
    train = _class_folders(folder / "train")
    if _class_folders(place):
        classes = train or _class_folders(place)
        files = _in_turn([_images(place / name) for name in classes], classes, place)
        return _read(files, len(classes), side, limit, IMAGENET_SHARE)
    classes, files = _flat_labels(named, folder, place, train)
    return _read(files, len(classes), side, limit, IMAGENET_SHARE)


def load_own_images(folder: Path, split: Split, side: int, limit: int | None) -> LabelledPictures:
    """Return the first `limit` images of `split`.

    Raises:
        ConfigError: There are no two classes, a class has no image, or images cannot be read.
    """
    separate = next((folder / name for name in _SPLIT_FOLDERS[split] if (folder / name).is_dir()), None)
    parted = any((folder / name).is_dir() for name in _SPLIT_FOLDERS["train"])
    if parted and separate is None and split == "test":
        raise ConfigError([absent(folder / "test", "add it, or evaluate on validation")])
    root = folder / "train" if parted else folder
    classes = _class_folders(root)
    if len(classes) < 2:
        raise ConfigError([f"{root}: folder must have a folder for each of 2 classes or more, got {classes}; add some"])
    place = separate or root
    members = [_images(place / name) for name in classes]
    if separate is None or (split == "train" and not _has(folder, "validation")):
        members = [_share(files, split, with_test=not parted) for files in members]
    return _read(_in_turn(members, classes, place), len(classes), side, limit)


def check_size(count: int, side: int, where: object) -> None:
    """Refuse more images than memory holds. Raises ConfigError."""
    if count * 3 * side * side > _MOST_BYTES:
        most = _MOST_BYTES // (3 * side * side)
        raise ConfigError(
            [f"{where}: images must fit in {_MOST_BYTES / 1e9:.0f} GB, got {count}; limit them to {most}"]
        )


def _has(folder: Path, split: Split) -> bool:
    return any((folder / name).is_dir() for name in _SPLIT_FOLDERS[split])


def _class_folders(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _share(files: list[Path], split: Split, *, with_test: bool) -> list[Path]:
    """Part the files of one class."""
    part = max(1, round(_SHARE * len(files)))
    test = len(files) - part * with_test
    parts = {"train": files[: test - part], "validation": files[test - part : test], "test": files[test:]}
    return parts[split]


def _in_turn(members: Sequence[list[Path]], classes: Sequence[str], place: Path) -> _Named:
    """Order files so that the classes take turns; refuse classes without any."""
    if empty := [name for name, files in zip(classes, members, strict=True) if not files]:
        shown = ", ".join(empty[:5])
        raise ConfigError([f"{place}: every class must have images, got none of {shown}; add some or remove the class"])
    numbered = [[(path, number) for path in files] for number, files in enumerate(members)]
    return [each for each in chain.from_iterable(zip_longest(*numbered)) if each is not None]


def _read(files: _Named, num_classes: int, side: int, limit: int | None, share: float = 1.0) -> LabelledPictures:
    chosen = files[:limit]
    check_size(len(chosen), side, "data")
    pixels = read_pictures([path for path, _ in chosen], side, share)
    return pixels, np.array([label for _, label in chosen], np.int64), num_classes


def _flat_labels(named: Path, folder: Path, place: Path, train: list[str]) -> tuple[list[str], _Named]:
    """Return the classes, and the images of a flat folder with their labels."""
    readers = {
        "val.txt": _numbered_lines,
        "LOC_val_solution.csv": _kaggle_lines,
        "imagenet_2012_validation_synset_labels.txt": _ordered_lines,
    }
    for name, reader in readers.items():
        for path in (folder / name, place / name, named / name):
            if path.is_file():
                return reader(path, place, train)
    wanted = ", ".join(readers)
    raise ConfigError([absent(place / "val.txt", f"add one of {wanted}, or a folder for each class")])


def _numbered_lines(path: Path, place: Path, train: list[str]) -> tuple[list[str], _Named]:
    files, faults = [], []
    for row, line in enumerate(read_lines(path), start=1):
        name, _, number = line.strip().rpartition(" ")
        if not name or not number.isdecimal():
            faults.append(f"{path}: row {row} must be a name and a number, got {line!r}; copy the published file")
            continue
        files.append((place / name, int(number)))
    if faults:
        raise ConfigError(faults)
    count = len(train) or 1000
    labels = np.array([label for _, label in files])
    if faults := label_faults(path, labels, count):
        raise ConfigError(faults)
    return train or [str(number) for number in range(count)], files


def _kaggle_lines(path: Path, place: Path, train: list[str]) -> tuple[list[str], _Named]:
    pairs = []
    for row, line in enumerate(read_lines(path)[1:], start=2):
        name, _, rest = line.partition(",")
        if not rest.strip():
            raise ConfigError([f"{path}: row {row} must be a name, a comma and a wnid, got {line!r}; copy it again"])
        pairs.append((f"{name}.JPEG", rest.split()[0]))
    return _by_wnid(path, place, train, sorted(pairs))


def _ordered_lines(path: Path, place: Path, train: list[str]) -> tuple[list[str], _Named]:
    wnids, names = [line.strip() for line in read_lines(path)], [each.name for each in _images(place)]
    if len(wnids) != len(names):
        raise ConfigError(
            [f"{path}: file must have a line for each of {len(names)} images, got {len(wnids)}; copy both"]
        )
    return _by_wnid(path, place, train, list(zip(names, wnids, strict=True)))


def _by_wnid(path: Path, place: Path, train: list[str], pairs: Sequence[tuple[str, str]]) -> tuple[list[str], _Named]:
    """Number the classes: by the training folders, or where these are not there by the labels themselves."""
    classes = train or sorted({wnid for _, wnid in pairs})
    numbers = {wnid: number for number, wnid in enumerate(classes)}
    if unknown := sorted({wnid for _, wnid in pairs} - set(classes)):
        raise ConfigError([f"{path}: wnids must have folders in train, got {', '.join(unknown[:5])}; copy them too"])
    return classes, [(place / name, numbers[wnid]) for name, wnid in pairs]
