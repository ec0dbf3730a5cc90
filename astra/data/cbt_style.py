"""Questions in the style of the Children's Book Test, made from books. Not its questions: name results `cbt-style`.

    cbt_{train,valid,test}.txt      a sentence a line, words apart, a line `_BOOK_TITLE_ : ...` before each book
    21 consecutive sentences        20 of context, and a query from which one word is missing; the next begin 7 later
    10 candidates                   the word and nine others of its kind, drawn from the context

The published rule is followed but for the kinds of words. There is no tagger here: what kind a word is of follows from
how it is used in the whole file, and named entities are left out, of which passages seldom hold ten. A word

    CN  stands between "the", "a", "his" ... and punctuation, "of", "was" ..., twice or more, and of the times that it
        stands after "the" ..., in half or more
    V   stands between "he", "they" ... and "the", "him", "into", punctuation ..., twice or more, and in a tenth or more
        of all its places
    P   is in a list of prepositions

Source: Hill et al., arXiv 1511.02301, section 2.1. The words' kinds are ours.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from astra.data.cbt import BLANK, NUM_CONTEXT, item_of
from astra.data.cloze import NUM_CANDIDATES, ClozeItem
from astra.data.folders import absent, read_lines
from astra.data.labelled import Split
from astra.errors import ConfigError

__all__ = ["make_items"]

_FILES: dict[Split, str] = {"train": "cbt_train.txt", "validation": "cbt_valid.txt", "test": "cbt_test.txt"}
_TITLE = "_BOOK_TITLE_"
_STEP = 7
"""Sentences between two queries: about as many as in the published test, 2,500 questions on 16,646 sentences."""
_SEEN_OFTEN = 2
_NOUN_SHARE, _VERB_SHARE = 0.5, 0.1
_SEED = 0


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PREPOSITIONS = _words(
    "about above across after against along among around at before behind below beneath beside between beyond by down "
    "during for from in inside into near of off on onto out over past round through throughout till to toward towards "
    "under until up upon with within without"
)
_DETERMINERS = _words("the a an his my your their our its every each some no any")
_SUBJECTS = _words("I he she we they")
_OBJECTS = _words("me you him her it us them himself herself itself themselves myself this that these those")
_CLOSED = (_PREPOSITIONS | _DETERMINERS | _SUBJECTS | _OBJECTS) | _words(
    "and or but if when as so then than because while though not never very too also only just there here now still "
    "yet again ever quite rather almost always soon once is are was were be been being am do does did has have had "
    "will would shall should can could may might must all one two both other another such what which who whom whose "
    "how why where more most much many few little own same n't 'll 'd 's 've 're else even well first last next"
)
_AFTER_NOUN = _PREPOSITIONS | {"and", "or", "who", "which", "that", "was", "is", "had", "were"}
_AFTER_VERB = _PREPOSITIONS | _DETERMINERS | _OBJECTS
_PUNCTUATION = re.compile(r"\W+")
_LOWER = re.compile(r"[a-z]{2,}")

Sentence = list[str]


def make_items(folder: Path, kind: str, split: Split, limit: int | None) -> list[ClozeItem]:
    """Make the first `limit` questions whose missing word is of `kind`.

    Raises:
        ConfigError: The file is missing or too short for one question.
    """
    path = folder / _FILES[split]
    if not path.is_file():
        raise ConfigError([absent(path, "copy CBT's books there, a sentence a line")])
    books = _read_books(path)
    known = _words_of_kind([sentence for book in books for sentence in book], kind)
    items: list[ClozeItem] = []
    for number, block in enumerate(_blocks(books)):
        if limit is not None and len(items) == limit:
            break
        if item := _make(block, known, kind, np.random.RandomState([_SEED, number])):
            items.append(item)
    if not items:
        raise ConfigError([f"{path}: file must have {NUM_CONTEXT + 1} sentences for a question on {kind}, got none"])
    return items


def _read_books(path: Path) -> list[list[Sentence]]:
    books: list[list[Sentence]] = [[]]
    for line in read_lines(path):
        if line.startswith(_TITLE):
            books.append([])
        elif line.strip():
            books[-1].append(line.split())
    return books


def _blocks(books: Sequence[list[Sentence]]) -> Iterator[list[Sentence]]:
    size = NUM_CONTEXT + 1
    for book in books:
        for start in range(0, len(book) - size + 1, _STEP):
            yield book[start : start + size]


def _make(block: list[Sentence], known: frozenset[str], kind: str, random: np.random.RandomState) -> ClozeItem | None:
    """Make a question of a block, unless its query has no word of the kind or its context too few."""
    context, query = block[:NUM_CONTEXT], block[NUM_CONTEXT]
    places = [place for place in range(1, len(query)) if query[place] in known and _stands_as(query, place, kind)]
    if not places:
        return None
    place = int(random.choice(places))
    others = sorted({word for sentence in context for word in sentence if word in known} - {query[place]})
    if len(others) < NUM_CANDIDATES - 1:
        return None
    candidates = [query[place], *random.choice(others, NUM_CANDIDATES - 1, replace=False).tolist()]
    random.shuffle(candidates)
    text = " ".join((*query[:place], BLANK, *query[place + 1 :]))
    made = item_of([" ".join(sentence) for sentence in context], text, query[place], tuple(candidates))
    return made if isinstance(made, ClozeItem) else None


def _stands_as(sentence: Sentence, place: int, kind: str) -> bool:
    """Say whether the word at `place` is used as a word of `kind`, as far as the word before tells."""
    before = {"CN": _DETERMINERS, "V": _SUBJECTS}.get(kind)
    return before is None or sentence[place - 1] in before


def _words_of_kind(sentences: Sequence[Sentence], kind: str) -> frozenset[str]:
    """Return the words that are of `kind` by their use in all sentences."""
    if kind == "P":
        return _PREPOSITIONS
    starts, ends = (_DETERMINERS, _AFTER_NOUN) if kind == "CN" else (_SUBJECTS, _AFTER_VERB)
    total, started, fitting = Counter[str](), Counter[str](), Counter[str]()
    for sentence in sentences:
        for before, word, after in zip(sentence, sentence[1:], sentence[2:], strict=False):
            total[word] += 1
            if before in starts:
                started[word] += 1
                fitting[word] += after in ends or _PUNCTUATION.fullmatch(after) is not None
    least, of = (_NOUN_SHARE, started) if kind == "CN" else (_VERB_SHARE, total)
    return frozenset(
        word
        for word, count in fitting.items()
        if count >= max(_SEEN_OFTEN, least * of[word]) and word not in _CLOSED and _LOWER.fullmatch(word)
    )
