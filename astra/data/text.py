"""Texts to calibrate on and texts to ask about, which never share a passage.

    sample: documentation of every other module of Python's standard library    -> calibrate, the rest -> request
    a file: its first half -> calibrate, its second -> request        a folder: the first half of its files, the second
    passages --tokenizer--> one stream of ids --windows of num_tokens--> int64 [N, T]

Every window follows from the seed and its number alone, so that every rank cuts the same ones. The sample depends on
the version of Python, of which it is a part.
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from astra.config import InputConfig, ModelConfig
from astra.config_file import text_faults, text_files
from astra.data.python_docs import docstrings
from astra.errors import ConfigError
from astra.tokenizer import load_tokenizer

__all__ = ["Purpose", "load_texts"]

Purpose = Literal["calibrate", "request"]
_PURPOSE_KEYS: dict[Purpose, int] = {"calibrate": 0, "request": 1}


def load_texts(given: InputConfig, model: ModelConfig, count: int, split: Purpose) -> NDArray[np.int64]:
    """Return `count` texts [N, T] of `split`; the first of them do not depend on `count`.

    The windows lie one after the other; once the passages are used up, they begin at seeded places.

    Raises:
        ConfigError: The file or folder is missing, cannot be read, or is shorter than one text.
    """
    length = model.num_content_tokens
    ids_S = _stream(given, model, split, wanted=count * length)
    if len(ids_S) < length:
        raise ConfigError(
            [
                f"config: input.text must hold at least {length} tokens to {split} on, got {len(ids_S)} in "
                f"{given.text!r}; give more text or a smaller model.num_tokens"
            ]
        )
    generator = np.random.default_rng([model.seed, _PURPOSE_KEYS[split]])
    whole = len(ids_S) // length
    starts = [
        number * length if number < whole else int(generator.integers(0, len(ids_S) - length, endpoint=True))
        for number in range(count)
    ]
    return np.stack([ids_S[start : start + length] for start in starts])


def _stream(given: InputConfig, model: ModelConfig, split: Purpose, wanted: int) -> NDArray[np.int64]:
    """Return the ids of the split's passages, one after the other, until there are enough."""
    tokenizer = load_tokenizer(model)
    ids: list[int] = []
    for passage in _passages(given, split):
        ids += tokenizer.encode(passage)
        if len(ids) >= wanted:
            break
    return np.array(ids, dtype=np.int64)


def _passages(given: InputConfig, split: Purpose) -> Iterator[str]:
    if given.text == "sample":
        yield from _sample_passages(split)
        return
    path = Path(given.text)
    if faults := text_faults("config", path):
        raise ConfigError(faults)
    if path.is_dir():
        files = text_files(path)
        middle = len(files) // 2
        yield from map(_read, files[:middle] if split == "calibrate" else files[middle:])
        return
    whole = _read(path)
    middle = len(whole) // 2
    yield whole[:middle] if split == "calibrate" else whole[middle:]


def _sample_passages(split: Purpose) -> Iterator[str]:
    """Yield the documentation of one module after the other; the splits take turns."""
    modules = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    for module in modules[_PURPOSE_KEYS[split] :: 2]:
        yield "".join(f"{text}\n\n" for text in docstrings(module))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: text must be readable UTF-8, got {error}; repair it or remove it"]) from error
