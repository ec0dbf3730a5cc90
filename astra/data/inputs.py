"""Inputs to calibrate on and inputs to ask about, which share nothing: images here, texts in `text`.

    sample photographs: left halves   -> calibrate      a folder: first half of its files  -> calibrate
                        right halves  -> request                  second half              -> request
    pictures --square crops, bicubic--> uint8 [N, 3, H, W] --to_input--> float32, normalised
    texts    --tokenizer, windows-----> int64 [N, T]       --to_input--> int64

Every crop follows from the seed and its number alone, so that every rank cuts the same ones. Knows nothing of labels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from astra.config import InputConfig, ModelConfig
from astra.config_file import folder_faults, image_files
from astra.data.text import Purpose, load_texts
from astra.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Purpose", "load_images", "load_inputs", "to_input"]

_PURPOSE_KEYS: dict[Purpose, int] = {"calibrate": 0, "request": 1}

_SMALLEST_CROP = 0.5
"""Side of the smallest crop as a share of the largest square that fits."""
_PIXEL_MEAN, _PIXEL_STD = 0.5, 0.5
"""What Google's ViT checkpoints are trained with, on pixels from 0 to 1."""


def load_inputs(given: InputConfig, model: ModelConfig, count: int, split: Purpose) -> NDArray[Any]:
    """Return `count` inputs of `split` of the kind that `model` reads: images or texts.

    Raises:
        ConfigError: See `load_images` and `text.load_texts`.
    """
    return load_texts(given, model, count, split) if model.is_text else load_images(given, model, count, split)


def load_images(images: InputConfig, model: ModelConfig, count: int, split: Purpose) -> NDArray[np.uint8]:
    """Return `count` images [N, 3, H, W] of `split`; the first of them do not depend on `count`.

    Picture after picture gives its largest centred square; once all have, they give seeded smaller ones.

    Raises:
        ConfigError: The folder has too few images, or some cannot be read; names each.
    """
    sample = images.images == "sample"
    pictures = _sample_halves(split) if sample else _read_files(_folder_half(images, split)[:count])
    generator = np.random.default_rng([model.seed, _PURPOSE_KEYS[split]])
    crops = []
    for index in range(count):
        picture = pictures[index % len(pictures)]
        box = _centred(picture) if index < len(pictures) else _drawn(picture, generator)
        size = (model.side, model.side)
        crops.append(np.asarray(picture.crop(box).resize(size, Image.Resampling.BICUBIC)).transpose(2, 0, 1))
    return np.stack(crops)


def to_input(raw: NDArray[Any]) -> "Tensor":
    """Make what a model reads: of pixels [..., 3, H, W], (x/255 - 0.5) / 0.5 in float32; of token ids, themselves."""
    import torch  # takes seconds to import; the check of a config goes without

    tensor = torch.from_numpy(np.array(raw))
    if raw.dtype != np.uint8:
        return tensor
    return (tensor.to(torch.float32) / 255.0 - _PIXEL_MEAN) / _PIXEL_STD


def _sample_halves(split: Purpose) -> list[Image.Image]:
    """Cut scikit-learn's two photographs (640 x 427 pixels) in halves, left and right."""
    from sklearn.datasets import load_sample_images  # takes a second to import; a folder of images goes without

    halves = []
    for photograph in load_sample_images().images:
        middle = photograph.shape[1] // 2
        half = photograph[:, :middle] if split == "calibrate" else photograph[:, middle:]
        halves.append(Image.fromarray(np.ascontiguousarray(half)))
    return halves


def _folder_half(images: InputConfig, split: Purpose) -> list[Path]:
    folder = Path(images.images)
    if faults := folder_faults("config", folder):
        raise ConfigError(faults)
    files = image_files(folder)
    middle = len(files) // 2
    return files[:middle] if split == "calibrate" else files[middle:]


def _read_files(paths: Sequence[Path]) -> list[Image.Image]:
    pictures: list[Image.Image] = []
    faults: list[str] = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                pictures.append(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            faults.append(f"{path}: image must be readable, got {error}; repair it or remove it from the folder")
    if faults:
        raise ConfigError(faults)
    return pictures


def _centred(picture: Image.Image) -> tuple[int, int, int, int]:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return left, top, left + side, top + side


def _drawn(picture: Image.Image, generator: np.random.Generator) -> tuple[int, int, int, int]:
    largest = min(picture.size)
    side = int(generator.integers(max(1, round(largest * _SMALLEST_CROP)), largest, endpoint=True))
    left = int(generator.integers(0, picture.width - side, endpoint=True))
    top = int(generator.integers(0, picture.height - side, endpoint=True))
    return left, top, left + side, top + side
