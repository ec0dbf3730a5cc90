"""Cloze questions: what is counted, how long texts are cut, CBT's files, and questions made from books."""

from pathlib import Path

import numpy as np
import pytest

from astra.config import ModelConfig
from astra.data import DataConfig, Examples, Split, load_examples
from astra.data.cloze import ClozeItem, encode_items
from astra.errors import ConfigError
from astra.tokenizer import ByteTokenizer

TOKENIZER = ByteTokenizer()
LETTERS = tuple("abcdefghij")
ITEM = ClozeItem("It was cold .", "He took the", "home .", ("dog", "caterpillar", *LETTERS[2:]), 1)


def model(length: int) -> ModelConfig:
    return ModelConfig(family="gpt2", size="tiny", num_tokens=length)


def shown(ids: np.ndarray) -> str:
    return TOKENIZER.decode(int(each) for each in ids if each not in (-100, TOKENIZER.pad_id))


def test_candidate_and_what_follows_are_counted():
    examples = encode_items([ITEM], TOKENIZER, model(60), "test")
    assert examples.inputs.shape == examples.labels.shape == (1, 10, 60)
    assert (examples.task, examples.metrics) == ("cloze", ("accuracy",))
    assert examples.answers is not None
    assert examples.answers.tolist() == [1]
    for candidate, inputs, labels in zip(ITEM.candidates, examples.inputs[0], examples.labels[0], strict=True):
        whole = f"It was cold . He took the {candidate} home ."
        assert shown(inputs) == whole[:-1]
        assert shown(labels).strip() == f"{candidate} home ."
        assert (inputs[np.flatnonzero(labels != -100)[1:]] == labels[labels != -100][:-1]).all(), "shifted by one"


def test_long_context_loses_its_start_alike_for_all_candidates():
    examples = encode_items([ITEM], TOKENIZER, model(30), "test")
    assert len({shown(inputs)[:10] for inputs in examples.inputs[0]}) == 1
    whole = "It was cold . He took the caterpillar home ."
    assert shown(examples.inputs[0, 1]) == whole[-31:-1], "the longest candidate fills the text"
    assert shown(examples.labels[0, 0]).strip() == "dog home ."


def test_query_longer_than_the_model_is_refused():
    with pytest.raises(ConfigError, match=r"model.num_tokens must be at least 19 for item 1, got 12; give a larger"):
        encode_items([ITEM], TOKENIZER, model(12), "test")


def test_blank_at_either_end():
    for before, after in (("", "ran ."), ("He", "")):
        item = ClozeItem("So .", before, after, LETTERS, 0)
        examples = encode_items([item], TOKENIZER, model(40), "test")
        assert shown(examples.labels[0, 0]).strip() == f"a {after}".strip()


# CBT's own files


def question(number: int) -> str:
    context = "".join(f"{row} Sentence {row} of question {number} .\n" for row in range(1, 21))
    return f"{context}21 He saw XXXXX there .\t{LETTERS[number]}\t\t{'|'.join(LETTERS)}\n\n"


def load(folder: Path, name: str, kind: str, split: Split = "test", **more: int) -> Examples:
    data = DataConfig.model_validate({"name": name, "folder": str(folder), "subset": kind})
    return load_examples(data, model(2000), split, **more)


@pytest.mark.parametrize(
    ("split", "name"), [("train", "train"), ("validation", "valid_2000ex"), ("test", "test_2500ex")]
)
def test_cbt_reads_the_published_question_files(tmp_path: Path, split: Split, name: str):
    (tmp_path / f"cbtest_NE_{name}.txt").write_text("".join(map(question, (3, 7, 0))))
    examples = load(tmp_path, "cbt", "NE", split)
    assert examples.answers is not None
    assert examples.answers.tolist() == [3, 7, 0]
    text = shown(examples.inputs[1, 9])
    assert text.startswith("Sentence 1 of question 7 . Sentence 2 of")
    assert text.endswith("Sentence 20 of question 7 . He saw j there ")
    assert len(load(tmp_path, "cbt", "NE", split, limit=2).inputs) == 2


def test_cbt_names_every_question_that_is_wrong(tmp_path: Path):
    path = tmp_path / "cbtest_CN_test_2500ex.txt"
    wrong = [
        question(1).replace("XXXXX", "it"),
        question(2),
        question(3).replace("a|b|", "a|"),
        question(4).replace("\t", " "),
        question(5).replace("20 Sentence", "19 Sentence"),
    ]
    path.write_text("".join(wrong))
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "cbt", "CN")
    starts = ["have one XXXXX in its query", "have 10 candidates with the answer 'd'", "have a query, its answer and",
              "have rows that begin with 1 to 21"]  # fmt: skip
    for fault, row, start in zip(caught.value.faults, (1, 45, 67, 89), starts, strict=True):
        assert fault.startswith(f"{path}: question of row {row} must {start}")
    path.write_text("\n")
    with pytest.raises(ConfigError, match="file must have questions, got none"):
        load(tmp_path, "cbt", "CN")
    with pytest.raises(ConfigError, match=r"cbtest_V_test_2500ex.txt: file must exist, got cbtest_CN_test_2500ex.txt"):
        load(tmp_path, "cbt", "V")


# Questions made from books

NOUNS = ("dog", "cat", "tree", "house", "king", "ship", "door", "road", "hill", "boat", "bird", "cave")
VERBS = ("saw", "took", "found", "left", "made", "kept", "held", "sold", "lost", "drew", "hid", "sent")


def write_books(folder: Path) -> None:
    lines = []
    for book in range(3):
        lines.append(f"_BOOK_TITLE_ : book_{book}.txt")
        for number in range(50):
            lines.append(f"Then he {VERBS[(number + book) % 12]} the {NOUNS[number % 12]} , by the old {NOUNS[book]} .")
    (folder / "cbt_test.txt").write_text("\n".join(lines))


@pytest.mark.parametrize(("kind", "words"), [("CN", NOUNS), ("V", VERBS)])
def test_cbt_style_asks_for_words_of_one_kind_from_the_passage(tmp_path: Path, kind: str, words: tuple[str, ...]):
    write_books(tmp_path)
    examples = load(tmp_path, "cbt-style", kind)
    assert examples.answers is not None
    assert len(examples.inputs) == 3 * 5, "a query every 7 sentences of a book of 50, after 20 of context"
    for inputs, labels, answer in zip(examples.inputs, examples.labels, examples.answers, strict=True):
        tails = [shown(each).split() for each in labels]
        candidates = [tail[0] for tail in tails]
        assert set(candidates) <= set(words)
        assert len(set(candidates)) == 10
        assert all(f" {word} " in shown(inputs[0]) for word in candidates), "all stand in the passage"
        assert f"{' '.join(tails[answer][1:])[:5]}" in shown(inputs[answer])
    assert np.array_equal(load(tmp_path, "cbt-style", kind).labels, examples.labels), "the same each time"
    assert len(set(examples.answers.tolist())) > 3, "the answer has no place of its own"


def test_cbt_style_leaves_out_what_cannot_be_asked(tmp_path: Path):
    write_books(tmp_path)
    with pytest.raises(ConfigError, match=r"must have 21 sentences for a question on P, got none"):
        load(tmp_path, "cbt-style", "P")
    with pytest.raises(ConfigError, match=r"cbt_valid.txt: file must exist"):
        load(tmp_path, "cbt-style", "CN", "validation")
