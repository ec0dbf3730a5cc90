"""Sets by name, through the optional library `datasets`, where a hub is reachable or has been.

    cifar10  uoft-cs/cifar10        cifar100   uoft-cs/cifar100       imagenet     ILSVRC/imagenet-1k
    GLUE     nyu-mll/glue           cbt        cam-cst/cbt            wikitext...  Salesforce/wikitext
    ptb      ptb-text-only/ptb_text_only

What is read becomes what the published files become, by the same rules: which rows are validation, how labels are
numbered, how photographs are cut.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from astra.data.cbt import item_of
from astra.data.cifar import rows_of
from astra.data.cloze import ClozeItem
from astra.data.folders import unlabelled
from astra.data.glue import GLUE
from astra.data.image_folders import IMAGENET_SHARE, LabelledPictures, check_size
from astra.data.labelled import Split
from astra.data.pixels import to_square
from astra.data.sentences import Sentences
from astra.data_config import DataConfig
from astra.errors import ConfigError

__all__ = ["hub_items", "hub_passages", "hub_pictures", "hub_sentences"]

_CONVERTED = "refs/convert/parquet"
"""The hub's own copy of a set that is published with a program, which `datasets` no longer runs."""
_PLACES: dict[str, tuple[str, str | None, str | None]] = {
    "cifar10": ("uoft-cs/cifar10", None, None),
    "cifar100": ("uoft-cs/cifar100", None, None),
    "imagenet": ("ILSVRC/imagenet-1k", None, None),
    **{name: ("nyu-mll/glue", name, None) for name in GLUE},
    "cbt": ("cam-cst/cbt", None, None),
    "wikitext2": ("Salesforce/wikitext", "wikitext-2", None),
    "wikitext103": ("Salesforce/wikitext", "wikitext-103", None),
    "ptb": ("ptb-text-only/ptb_text_only", "penn_treebank", _CONVERTED),
}
"""Repository, configuration and revision of each set."""
_COLUMNS = {"cifar10": ("img", "label"), "cifar100": ("img", "fine_label"), "imagenet": ("image", "label")}
_NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_GLUE_PARTS: dict[str, tuple[str, ...]] = {
    "sst2": ("sentence",),
    "cola": ("sentence",),
    "qnli": ("question", "sentence"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
}
_PAIR = ("sentence1", "sentence2")


def hub_pictures(data: DataConfig, split: Split, side: int, limit: int | None) -> LabelledPictures:
    """Return images [N, 3, S, S] and classes; raises ConfigError as all here, where the set cannot be had."""
    imagenet = data.name == "imagenet"
    if imagenet and split == "test":
        raise unlabelled("data", data.name)
    table = _table(data, split if imagenet or split == "test" else "train")
    rows = range(len(table))[:limit] if imagenet else rows_of(split, len(table), limit)
    check_size(len(rows), side, "data")
    pixels, labels = np.empty((len(rows), 3, side, side), np.uint8), np.empty(len(rows), np.int64)
    image_column, label_column = _COLUMNS[data.name]
    for number, row in enumerate(table.select(rows)):
        pixels[number] = to_square(row[image_column], side, IMAGENET_SHARE if imagenet else 1.0)
        labels[number] = row[label_column]
    return pixels, labels, _NUM_CLASSES[data.name]


def hub_sentences(data: DataConfig, split: Split, limit: int | None) -> Sentences:
    """Return the rows of one of GLUE's tasks."""
    own = f"{split}_{data.subset or 'matched'}" if data.name == "mnli" and split != "train" else split
    table = _table(data, own)
    rows = list(table.select(range(len(table))[:limit]))
    if any(row["label"] < 0 for row in rows):
        raise unlabelled("data", data.name)
    kind = np.int64 if GLUE[data.name].classes else np.float32  # type: ignore[index]  # only GLUE's names come here
    parts = _GLUE_PARTS.get(data.name, _PAIR)
    labels = np.array([row["label"] for row in rows], kind)
    return Sentences(tuple(tuple(row[part].strip() for row in rows) for part in parts), labels)


def hub_passages(data: DataConfig, split: Split) -> Iterator[str]:
    """Yield the lines of a text, as the published files have them."""
    for row in _table(data, split):
        yield f" {row['sentence']} \n" if data.name == "ptb" else row["text"]


def hub_items(data: DataConfig, split: Split, limit: int | None) -> list[ClozeItem]:
    """Return CBT's questions."""
    table = _table(data, split)
    items = []
    for number, row in enumerate(table.select(range(len(table))[:limit]), start=1):
        item = item_of(row["sentences"], row["question"], row["answer"], tuple(row["options"]))
        if not isinstance(item, ClozeItem):
            raise ConfigError([f"data: question {number} of {data.name} must {item}; name a folder with its files"])
        items.append(item)
    return items


def _table(data: DataConfig, split: str) -> Any:
    """Open a split, of which nothing is in memory yet.

    Raises:
        ConfigError: The library is not there, or it cannot get the set.
    """
    advice = "or name the folder of the set's files"
    try:
        import datasets  # optional, and slow to import
    except ImportError as error:
        raise ConfigError(
            [
                f"data: folder must be given where the library `datasets` is missing, got {data.name} by name; "
                f"pip install 'astra-testbed[hub]', {advice}"
            ]
        ) from error
    repository, configuration, revision = _PLACES[data.name]
    if data.name == "cbt":
        configuration = data.subset
    elif configuration and data.name.startswith("wikitext"):
        configuration += "-v1" if data.subset == "tokens" else "-raw-v1"
    try:
        return datasets.load_dataset(repository, configuration, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:  # unreachable, unknown or gated, or in an old form
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(
            [
                f"data: name must be a set that can be fetched, got {data.name} from {repository} ({reason}); "
                f"try again, {advice}"
            ]
        ) from error
