"""Labelled examples of a set by its name: the one door to all of them.

DataConfig --load_examples--> Examples, at the model's image size or of its tokens
"""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from astra.config import ModelConfig
from astra.data.cifar import load_cifar
from astra.data.digits import load_digits
from astra.data.folders import set_folder
from astra.data.glue import GLUE, read_glue
from astra.data.labelled import NOT_COUNTED, Examples, Split, Task
from astra.data.language import local_passages, windows
from astra.data.pixels import resize
from astra.data.sentences import encode_sentences
from astra.data_config import ClozeName, DataConfig, GlueName, ImageName, LanguageName
from astra.errors import ConfigError
from astra.tokenizer import load_tokenizer

__all__ = ["NOT_COUNTED", "Examples", "Split", "Task", "load_examples"]

_NUM_CLASSES = {"digits": 10, "cifar10": 10, "cifar100": 100}
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
    else:
        tokenizer = load_tokenizer(model, data.tokenizer)
        examples = windows(local_passages(data, split), tokenizer, model, limit, f"data: {split} of {data.name}")
    if examples.num_labels is not None and examples.num_labels != model.num_classes:
        raise ConfigError(
            [
                f"model: num_labels must be {examples.num_labels} for {data.name}, got {model.num_classes}; "
                "change it, or choose a checkpoint trained on the set"
            ]
        )
    return examples


def _load_images(data: DataConfig, model: ModelConfig, split: Split, limit: int | None) -> Examples:
    pixels: NDArray[Any]
    if data.name == "digits":
        pixels, labels = load_digits(split)
    else:
        pixels, labels = load_cifar(set_folder(data), _NUM_CLASSES[data.name], split, limit)
    pixels, labels = resize(pixels[:limit], model.side), labels[:limit]
    return Examples(pixels, labels.astype(np.int64), "classification", _NUM_CLASSES[data.name], ("accuracy",))


def _load_sentences(data: DataConfig, model: ModelConfig, split: Split, limit: int | None) -> Examples:
    assert data.name in GLUE
    task = GLUE[data.name]
    sentences = read_glue(set_folder(data), data.name, data.subset, split, limit)
    ids_NT = encode_sentences(sentences, load_tokenizer(model, data.tokenizer), model)
    if task.classes:
        return Examples(ids_NT, sentences.labels, "classification", len(task.classes), task.metrics)
    return Examples(ids_NT, sentences.labels, "regression", 1, task.metrics)
