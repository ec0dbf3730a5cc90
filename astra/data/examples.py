"""Labelled examples of a set by its name: the one door to all of them.

DataConfig --load_examples--> Examples, at the model's image size or of its tokens
"""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from astra.config import ModelConfig
from astra.data.cbt import read_cbt
from astra.data.cbt_style import make_items
from astra.data.cifar import load_cifar
from astra.data.cloze import ClozeItem, encode_items
from astra.data.digits import NUM_DIGITS, load_digits
from astra.data.folders import set_folder
from astra.data.glue import GLUE, read_glue
from astra.data.hub import hub_items, hub_passages, hub_pictures, hub_sentences
from astra.data.image_folders import LabelledPictures, load_imagenet, load_own_images
from astra.data.labelled import NOT_COUNTED, Examples, Split, Task
from astra.data.language import local_passages, windows
from astra.data.pixels import resize
from astra.data.sentences import encode_sentences
from astra.data_config import BUILT_IN, ClozeName, DataConfig, GlueName, ImageName, LanguageName
from astra.errors import ConfigError
from astra.tokenizer import load_tokenizer

__all__ = ["NOT_COUNTED", "Examples", "Split", "Task", "load_examples"]

_READ_BY: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(get_args(ImageName), ("vit",)),
    **dict.fromkeys(get_args(GlueName), ("bert",)),
    **dict.fromkeys((*get_args(LanguageName), *get_args(ClozeName)), ("gpt2", "llama")),
}
"""Families that can be asked what a set asks."""


def load_examples(data: DataConfig, model: ModelConfig, split: Split, *, limit: int | None = None) -> Examples:
    """Return the first `limit` examples of `split`, all for None, as inputs of `model`.

    Raises:
        ConfigError: The set's files are missing or wrong, or the set does not suit the model; says every fault.
    """
    if model.family not in _READ_BY[data.name]:
        families = " or ".join(_READ_BY[data.name])
        raise ConfigError(
            [f"model: family must be {families} for {data.name}, got {model.family!r}; change it or data.name"]
        )
    if data.name in GLUE:
        examples = _load_sentences(data, model, split, limit)
    elif data.name in get_args(ImageName):
        examples = _load_images(data, model, split, limit)
    elif data.name in get_args(ClozeName):
        items = _cloze_items(data, split, limit)
        examples = encode_items(items, load_tokenizer(model, data.tokenizer), model, f"data: {data.name}")
    else:
        passages = hub_passages(data, split) if _by_name(data) else local_passages(data, split)
        tokenizer = load_tokenizer(model, data.tokenizer)
        examples = windows(passages, tokenizer, model, limit, f"data: {split} of {data.name}")
    if examples.num_labels is not None and examples.num_labels != model.num_classes:
        raise ConfigError(
            [
                f"model: num_labels must be {examples.num_labels} for {data.name}, got {model.num_classes}; "
                "change it, or choose a checkpoint trained on the set"
            ]
        )
    return examples


def _by_name(data: DataConfig) -> bool:
    """Say whether a set has to be fetched."""
    return data.folder is None and data.name not in BUILT_IN


def _load_images(data: DataConfig, model: ModelConfig, split: Split, limit: int | None) -> Examples:
    pixels, labels, num_classes = _pictures(data, model.side, split, limit)
    return Examples(pixels, labels, "classification", num_classes, ("accuracy",))


def _pictures(data: DataConfig, side: int, split: Split, limit: int | None) -> LabelledPictures:
    if _by_name(data):
        return hub_pictures(data, split, side, limit)
    if data.name == "imagenet":
        assert data.folder is not None
        return load_imagenet(Path(data.folder), set_folder(data), split, side, limit)
    if data.name == "images":
        return load_own_images(set_folder(data), split, side, limit)
    if data.name == "digits":
        pixels, labels = load_digits(split)
        return resize(pixels[:limit], side), labels[:limit], NUM_DIGITS
    num_classes = 10 if data.name == "cifar10" else 100
    pixels, labels = load_cifar(set_folder(data), num_classes, split, limit)
    return resize(pixels, side), labels, num_classes


def _load_sentences(data: DataConfig, model: ModelConfig, split: Split, limit: int | None) -> Examples:
    assert data.name in GLUE
    task = GLUE[data.name]
    if _by_name(data):
        sentences = hub_sentences(data, split, limit)
    else:
        sentences = read_glue(set_folder(data), data.name, data.subset, split, limit)
    ids_NT = encode_sentences(sentences, load_tokenizer(model, data.tokenizer), model)
    if task.classes:
        return Examples(ids_NT, sentences.labels, "classification", len(task.classes), task.metrics)
    return Examples(ids_NT, sentences.labels, "regression", 1, task.metrics)


def _cloze_items(data: DataConfig, split: Split, limit: int | None) -> list[ClozeItem]:
    assert data.subset is not None, "DataConfig asks for it"
    if _by_name(data):
        return hub_items(data, split, limit)
    if data.name == "cbt":
        return read_cbt(set_folder(data), data.subset, split, limit)
    return make_items(set_folder(data), data.subset, split, limit)
