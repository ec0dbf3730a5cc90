"""Texts to predict the next token of: WikiText, Penn Treebank, one's own, and Python's documentation.

    passages --tokenizer--> one stream of ids --windows of T, one after the other--> inputs [N, T]
                                              --the same, one token later---------> labels [N, T]

Every token but the first is predicted once: the last of a window from the window before it. The last window is filled
up; what it is filled with is not counted. Perplexity is therefore per token of the tokenizer, and tokens at the start
of a window see little of the text before them.

    wikitext2, wikitext103   wiki.{train,valid,test}.raw, or .tokens      ptb   ptb.{train,valid,test}.txt
    text                     a file or folder: of each file, the first 80 % train, 10 % validation, 10 % test
    python-docs              of 10 passages in turn, 8 train, 1 validation, 1 test

Source: WikiText: Merity et al., arXiv 1609.07843. Penn Treebank: Mikolov et al., 2010 (10,000 words).
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from astra.config import ModelConfig
from astra.data.folders import absent, read_text, set_folder, text_paths
from astra.data.labelled import NOT_COUNTED, Examples, Split
from astra.data.python_docs import python_docs
from astra.data_config import DataConfig
from astra.errors import ConfigError
from astra.tokenizer import Tokenizer

__all__ = ["local_passages", "windows"]

_PIECE, _PIECES_AT_ONCE = 1 << 14, 16
"""Characters of a piece of text, and pieces that are encoded together, on all cores."""
_LINE_END = re.compile(r"(?<=\S)\n")
"""Where a text can be cut without changing its tokens: tokenizers keep a newline apart from the word before it."""
_FILE_SPLITS: dict[Split, str] = {"train": "train", "validation": "valid", "test": "test"}
_SHARES: dict[Split, tuple[float, float]] = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}


def local_passages(data: DataConfig, split: Split) -> Iterator[str]:
    """Yield the texts of `split` in order.

    Raises:
        ConfigError: A file is missing or no UTF-8.
    """
    if data.name == "python-docs":
        return python_docs(split)
    folder = set_folder(data)
    if data.name == "text":
        return (_share(read_text(path), split) for path in text_paths(folder))
    return iter([read_text(_published_file(data, folder, split))])


def windows(
    passages: Iterable[str], tokenizer: Tokenizer, model: ModelConfig, limit: int | None, where: str
) -> Examples:
    """Cut texts into the first `limit` windows of the model's length.

    Raises:
        ConfigError: There is nothing to predict.
    """
    length = model.num_content_tokens
    ids_S = _stream(passages, tokenizer, None if limit is None else limit * length + 1)
    if len(ids_S) < 2:
        raise ConfigError([f"{where}: text must have at least 2 tokens, got {len(ids_S)}; give more text"])
    count = -(-(len(ids_S) - 1) // length)
    inputs_S = np.full(count * length, tokenizer.pad_id, np.int64)
    labels_S = np.full(count * length, NOT_COUNTED, np.int64)
    inputs_S[: len(ids_S) - 1] = ids_S[:-1]
    labels_S[: len(ids_S) - 1] = ids_S[1:]
    return Examples(inputs_S.reshape(count, length), labels_S.reshape(count, length), "language", None, ("perplexity",))


def _stream(passages: Iterable[str], tokenizer: Tokenizer, wanted: int | None) -> NDArray[np.int64]:
    """Return the ids of the passages, one after the other, `wanted` of them if there are as many."""
    parts: list[NDArray[np.int64]] = []
    total = 0
    for pieces in _pieces(passages):
        for ids in tokenizer.encode_all(pieces):
            parts.append(np.array(ids, np.int64))
            total += len(ids)
        if wanted is not None and total >= wanted:
            break
    return np.concatenate([np.empty(0, np.int64), *parts])[:wanted]


def _pieces(passages: Iterable[str]) -> Iterator[list[str]]:
    """Yield texts in lists of pieces to encode together, cut at line ends."""
    gathered: list[str] = []
    for passage in passages:
        start = 0
        while start < len(passage):
            cut = _LINE_END.search(passage, start + _PIECE)
            stop = cut.start() if cut else len(passage)
            gathered.append(passage[start:stop])
            start = stop
            if len(gathered) == _PIECES_AT_ONCE:
                yield gathered
                gathered = []
    if gathered:
        yield gathered


def _published_file(data: DataConfig, folder: Path, split: Split) -> Path:
    """Find the split's file; raw text goes before the form with <unk> where both are there."""
    stem = _FILE_SPLITS[split]
    names = [f"ptb.{stem}.txt"] if data.name == "ptb" else [f"wiki.{stem}.raw", f"wiki.{stem}.tokens"]
    if data.subset is not None:
        names = [f"wiki.{stem}.{data.subset}"]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError([absent(folder / names[0], f"copy the published {split} file of {data.name} there")])


def _share(text: str, split: Split) -> str:
    """Return the split's share of a text, cut at line ends."""
    start, stop = (_cut(text, share) for share in _SHARES[split])
    return text[start:stop]


def _cut(text: str, share: float) -> int:
    found = text.find("\n", round(len(text) * share)) if 0 < share < 1 else -1
    return found + 1 if found >= 0 else round(len(text) * share)
