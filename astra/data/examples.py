"""Labelled examples of a set by its name: the one door to all of them.

DataConfig --load_examples--> Examples, at the model's image size or of its tokens
"""

from pathlib import Path

import numpy as np

from astra.config import ModelConfig
from astra.data.cifar import load_cifar
from astra.data.digits import load_digits
from astra.data.labelled import Examples, Split, Task
from astra.data.pixels import resize
from astra.data_config import DataConfig
from astra.errors import ConfigError

__all__ = ["Examples", "Split", "Task", "load_examples"]


def load_examples(data: DataConfig, model: ModelConfig, split: Split, *, limit: int | None = None) -> Examples:
    """Return the first `limit` examples of `split`, all for None, as inputs of `model`.

    Raises:
        ConfigError: The set's files are missing or wrong, or the set does not suit the model; says every fault.
    """
    if data.name == "digits":
        pixels, labels = load_digits(split)
        num_classes = 10
        pixels, labels = pixels[:limit], labels[:limit]
    elif data.name in ("cifar10", "cifar100") and data.folder is not None:
        num_classes = 10 if data.name == "cifar10" else 100
        pixels, labels = load_cifar(Path(data.folder), num_classes, split, limit)
    else:
        raise ConfigError([f"data: name must be a set that can be loaded yet, got {data.name!r}; choose digits"])
    return Examples(resize(pixels, model.side), labels.astype(np.int64), "classification", num_classes, ("accuracy",))
