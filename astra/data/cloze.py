"""Questions with a missing word and candidates for it, as inputs of a language model.

    context . before CANDIDATE after     one sequence of ids for each of C candidates
             |------ counted ------|     its score is the sum of the log-probabilities of these tokens

The counted tokens are the candidate and all that follows it in the query, so that candidates of different length are
compared by how probable they make the whole sentence. The best score is the answer. Where a sequence is longer than the
model's texts, the start of its context is left out, equally for all candidates.

Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019, section 3.2 (the probability of each
choice and of the rest of the sentence given this choice). Unlike there, the words are as the set has them, apart from
their punctuation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from astra.config import ModelConfig
from astra.data.labelled import NOT_COUNTED, Examples
from astra.errors import ConfigError
from astra.tokenizer import Tokenizer

__all__ = ["NUM_CANDIDATES", "ClozeItem", "encode_items"]

NUM_CANDIDATES = 10


@dataclass(frozen=True)
class ClozeItem:
    """One question: sentences before it, and the query on both sides of the missing word."""

    context: str
    before: str
    after: str
    candidates: tuple[str, ...]
    answer: int
    """Which candidate is right."""


@dataclass(frozen=True)
class _Sequences:
    """The ids of every candidate's sequence, and from where on they count."""

    shared: list[int]
    tails: list[list[int]]


def encode_items(items: Sequence[ClozeItem], tokenizer: Tokenizer, model: ModelConfig, where: str) -> Examples:
    """Return inputs and labels [N, C, T], and answers [N]; see `Examples`.

    Raises:
        ConfigError: A query is longer than the model's texts.
    """
    length = model.num_content_tokens
    shape = (len(items), NUM_CANDIDATES, length)
    inputs_NCT, labels_NCT = np.full(shape, tokenizer.pad_id, np.int64), np.full(shape, NOT_COUNTED, np.int64)
    faults = []
    for number, encoded in enumerate(_encode(items, tokenizer)):
        longest = max(map(len, encoded.tails))
        if longest > length:
            rule = f"at least {longest} for item {number + 1}"
            faults.append(f"{where}: model.num_tokens must be {rule}, got {length}; give a larger number")
            continue
        shared = encoded.shared[max(0, len(encoded.shared) + longest - 1 - length) :]
        for candidate, tail in enumerate(encoded.tails):
            ids = shared + tail
            inputs_NCT[number, candidate, : len(ids) - 1] = ids[:-1]
            labels_NCT[number, candidate, len(shared) - 1 : len(ids) - 1] = tail
    if faults:
        raise ConfigError(faults)
    answers_N = np.array([item.answer for item in items], np.int64)
    return Examples(inputs_NCT, labels_NCT, "cloze", None, ("accuracy",), answers_N)


def _encode(items: Sequence[ClozeItem], tokenizer: Tokenizer) -> Iterator[_Sequences]:
    """Encode contexts and queries apart, so that a candidate changes no token before the missing word."""
    encoded = iter(tokenizer.encode_all([text for item in items for text in _texts(item)]))
    for _ in items:
        context, before, *full = islice(encoded, 2 + NUM_CANDIDATES)
        common = min(_same(before, ids) for ids in full)
        yield _Sequences(context + full[0][:common], [ids[common:] for ids in full])


def _texts(item: ClozeItem) -> Sequence[str]:
    """Return the context, the query up to the missing word, and the query with each candidate."""
    start = f" {item.before}" if item.before else ""
    return [item.context, start, *(f"{start} {candidate} {item.after}".rstrip() for candidate in item.candidates)]


def _same(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many ids two sequences begin with alike."""
    pairs = zip(first, second, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
