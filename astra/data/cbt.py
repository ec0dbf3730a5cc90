"""The Children's Book Test: questions from their published files.

    cbtest_{NE,CN,V,P}_{train,valid_2000ex,test_2500ex}.txt
        1 first sentence of the context
        ...
        20 last sentence of the context
        21 query with XXXXX for the missing word<TAB>answer<TAB><TAB>ten|candidates|with|bars|...
        (an empty line)

The missing word is a named entity (NE), a common noun (CN), a verb (V) or a preposition (P).

Source: Hill et al., The Goldilocks Principle, arXiv 1511.02301.
"""

from collections.abc import Iterator
from pathlib import Path

from astra.data.cloze import NUM_CANDIDATES, ClozeItem
from astra.data.folders import absent, read_lines
from astra.data.labelled import Split
from astra.errors import ConfigError

__all__ = ["BLANK", "NUM_CONTEXT", "item_of", "read_cbt"]

NUM_CONTEXT = 20
BLANK = "XXXXX"
_FILES: dict[Split, str] = {"train": "train", "validation": "valid_2000ex", "test": "test_2500ex"}


def read_cbt(folder: Path, kind: str, split: Split, limit: int | None) -> list[ClozeItem]:
    """Read the first `limit` questions of one kind of missing word.

    Raises:
        ConfigError: The file is missing, or questions are not in the format; names the rows.
    """
    path = folder / f"cbtest_{kind}_{_FILES[split]}.txt"
    if not path.is_file():
        raise ConfigError([absent(path, "copy CBT's question files there")])
    items: list[ClozeItem] = []
    faults: list[str] = []
    for row, block in _blocks(path):
        if limit is not None and len(items) == limit:
            break
        parsed = _parse(block)
        if isinstance(parsed, ClozeItem):
            items.append(parsed)
        else:
            faults.append(f"{path}: question of row {row} must {parsed}; copy the published file")
    if not items and not faults:
        faults = [f"{path}: file must have questions, got none; copy the published file"]
    if faults:
        raise ConfigError(faults[:10])
    return items


def item_of(sentences: list[str], query: str, answer: str, candidates: tuple[str, ...]) -> ClozeItem | str:
    """Make an item, or say what is wrong with it: `have ..., got ...`."""
    if query.split().count(BLANK) != 1:
        return f"have one {BLANK} in its query, got {query!r}"
    if len(candidates) != NUM_CANDIDATES or answer not in candidates:
        return f"have {NUM_CANDIDATES} candidates with the answer {answer!r}, got {'|'.join(candidates)!r}"
    words = query.split()
    place = words.index(BLANK)
    before, after = " ".join(words[:place]), " ".join(words[place + 1 :])
    return ClozeItem(" ".join(sentences), before, after, candidates, candidates.index(answer))


def _blocks(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the row where each question begins, and its lines."""
    block: list[str] = []
    row = 0
    for row, line in enumerate(read_lines(path), start=1):
        if line.strip():
            block.append(line)
        elif block:
            yield row - len(block), block
            block = []
    if block:
        yield row - len(block) + 1, block


def _parse(block: list[str]) -> ClozeItem | str:
    """Read a question, or say what is wrong with it."""
    numbers, texts = zip(*(line.partition(" ")[::2] for line in block), strict=True)
    if list(numbers) != [str(number) for number in range(1, NUM_CONTEXT + 2)]:
        return f"have rows that begin with 1 to {NUM_CONTEXT + 1}, got {' '.join(numbers)!r}"
    cells = texts[-1].split("\t")
    if len(cells) < 3:
        return f"have a query, its answer and candidates between tabs, got {texts[-1]!r}"
    return item_of(
        [text.strip() for text in texts[:-1]], cells[0], cells[1].strip(), tuple(cells[-1].strip().split("|"))
    )
