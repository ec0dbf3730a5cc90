"""One or two sentences and a label a row, as a classifier reads them.

    "a [SEP]"  or  "a [SEP] b [SEP]"  --pads--> int64 [N, T]

The class token is not among them: the model puts it in front. Sentences that do not fit are cut at their ends, the
longer of two first, as BERT's authors did. All tokens have segment 0.

Source: Devlin et al., arXiv 1810.04805, section 3; run_classifier of its release cuts pairs in this way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from astra.config import ModelConfig
from astra.errors import ConfigError
from astra.tokenizer import Tokenizer

__all__ = ["Sentences", "encode_sentences"]

_SHORTEST = 4
"""Tokens that a pair needs: one of each sentence, and its separator."""


@dataclass(frozen=True)
class Sentences:
    """Rows of a set, before they are tokens."""

    parts: tuple[tuple[str, ...], ...]
    """The first sentence of every row; then, for pairs, the second of every row."""
    labels: NDArray[Any]


def encode_sentences(sentences: Sentences, tokenizer: Tokenizer, model: ModelConfig) -> NDArray[np.int64]:
    """Return the ids [N, T] of each row.

    Raises:
        ConfigError: The model's texts are too short for a row, or the tokenizer has no separator.
    """
    length = model.num_content_tokens
    if length < _SHORTEST:
        raise ConfigError(
            [f"model: num_tokens must be at least {_SHORTEST} for sentences, got {length}; give a larger number"]
        )
    ids_NT = np.full((len(sentences.labels), length), tokenizer.pad_id, np.int64)
    separator = tokenizer.separator_id
    encoded = [tokenizer.encode_all(part) for part in sentences.parts]
    for row, ids in enumerate(zip(*encoded, strict=True)):
        joined = [each for part in _fit(ids, length - len(ids)) for each in (*part, separator)]
        ids_NT[row, : len(joined)] = joined
    return ids_NT


def _fit(parts: Sequence[list[int]], budget: int) -> Sequence[list[int]]:
    """Cut one or two parts so that together they have at most `budget` ids."""
    if len(parts) == 1:
        return [parts[0][:budget]]
    first, second = parts
    if len(first) + len(second) <= budget:
        return parts
    half = budget // 2
    if len(second) <= half:
        return [first[: budget - len(second)], second]
    if len(first) <= budget - half:
        return [first, second[: budget - len(first)]]
    return [first[: budget - half], second[:half]]
