"""Language sets: windows follow one another, every token is predicted once, splits share nothing."""

from pathlib import Path

import numpy as np
import pytest

from astra.config import ModelConfig
from astra.data import DataConfig, Examples, Split, language, load_examples
from astra.data.python_docs import python_docs
from astra.errors import ConfigError
from astra.tokenizer import ByteTokenizer

MODEL = ModelConfig(family="gpt2", size="tiny", num_tokens=8)
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def load(name: str, folder: Path | None, split: Split = "train", limit: int | None = None, **more: str) -> Examples:
    data = DataConfig.model_validate({"name": name, "folder": None if folder is None else str(folder), **more})
    return load_examples(data, MODEL, split, limit=limit)


def text_of(examples: Examples) -> str:
    """Return the text whose tokens are inputs, and the last label."""
    counted = examples.labels[examples.labels != -100]
    first = examples.inputs.ravel()[:1]
    return ByteTokenizer().decode(int(each) for each in np.concatenate([first, counted]))


def test_every_token_but_the_first_is_predicted_once(tmp_path: Path):
    (tmp_path / "wiki.test.tokens").write_text("abcdefghijklmnopqrs")
    examples = load("wikitext2", tmp_path, "test")
    assert examples.inputs.shape == examples.labels.shape == (3, 8)
    assert (examples.labels[:-1, -1] == examples.inputs[1:, 0]).all()
    assert text_of(examples) == "abcdefghijklmnopqrs"
    assert examples.inputs[2].tolist() == [ord("q"), ord("r"), *[ByteTokenizer.pad_id] * 6]
    assert examples.labels[2].tolist() == [ord("r"), ord("s"), *[-100] * 6]
    assert (examples.task, examples.num_labels, examples.metrics) == ("language", None, ("perplexity",))


def test_limit_takes_the_first_windows(tmp_path: Path):
    (tmp_path / "ptb.train.txt").write_text("abcdefghijklmnopqrs" * 9)
    whole, some = load("ptb", tmp_path), load("ptb", tmp_path, limit=2)
    assert np.array_equal(some.inputs, whole.inputs[:2])
    assert np.array_equal(some.labels, whole.labels[:2])


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("wikitext2", ("wiki.train.raw", "wiki.valid.raw", "wiki.test.raw")),
        ("wikitext103", ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens")),
        ("ptb", ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt")),
    ],
)
def test_published_files_are_the_splits(tmp_path: Path, name: str, names: tuple[str, ...]):
    for file in names:
        (tmp_path / file).write_text(f"text of {file}")
    assert [text_of(load(name, tmp_path, split)) for split in SPLITS] == [f"text of {file}" for file in names]


def test_wikitext_is_raw_unless_asked_otherwise(tmp_path: Path):
    for ending in ("raw", "tokens"):
        (tmp_path / f"wiki.test.{ending}").write_text(ending)
    assert text_of(load("wikitext2", tmp_path, "test")) == "raw"
    assert text_of(load("wikitext2", tmp_path, "test", subset="tokens")) == "tokens"


def test_text_splits_are_shares_of_every_file_cut_at_lines(tmp_path: Path):
    for name, letter in (("b.txt", "y"), ("a.md", "x"), ("c.csv", "z")):
        (tmp_path / name).write_text(f"{letter * 9}\n" * 20)
    parts = [text_of(load("text", tmp_path, split)) for split in SPLITS]
    lines = [[part.count("x\n"), part.count("y\n"), part.count("z\n")] for part in parts]
    assert (np.array(lines).sum(0) == [20, 20, 0]).all()
    assert (abs(np.array(lines)[:, :2] - [[16], [2], [2]]) <= 1).all()
    assert all(part.startswith("x") and part.endswith("y\n") for part in parts)
    assert text_of(load("text", tmp_path / "a.md", "test")) == "x" * 9 + "\n" + ("x" * 9 + "\n") * (lines[2][0] - 1)


def test_cutting_into_pieces_changes_no_token(monkeypatch: pytest.MonkeyPatch):
    text = "one two\n\n  three\nfour \n five\n" * 40
    monkeypatch.setattr(language, "_PIECE", 30)
    pieces = [piece for group in language._pieces([text]) for piece in group]
    assert len(pieces) > 20
    assert "".join(pieces) == text
    assert all(not piece[-1].isspace() for piece in pieces[:-1]), "no run of spaces is cut"


def test_python_docs_splits_share_no_passage():
    parts = {split: list(python_docs(split)) for split in SPLITS}
    assert sum(map(len, parts["train"])) > 1_000_000
    assert min(sum(map(len, parts[split])) for split in ("validation", "test")) > 50_000
    long = {split: {passage for passage in part if len(passage) > 100} for split, part in parts.items()}
    assert not long["train"] & long["test"]
    assert not long["train"] & long["validation"]
    assert "".join(parts["test"]) == "".join(python_docs("test"))


def test_python_docs_are_words():
    assert " the " in text_of(load("python-docs", None, limit=100))


def test_faults_name_the_file_and_what_to_do(tmp_path: Path):
    def said(name: str, folder: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load(name, folder)
        return str(caught.value)

    assert "wiki.train.raw: file must exist, got nothing in its folder" in said("wikitext2", tmp_path)
    assert "folder must hold texts (.md .rst .txt), got none" in said("text", tmp_path)
    assert "folder must exist, got" in said("text", tmp_path / "none")
    (tmp_path / "ptb.train.txt").write_text("a")
    assert "train of ptb: text must have at least 2 tokens, got 1" in said("ptb", tmp_path)
    (tmp_path / "ptb.train.txt").write_bytes(b"good\nb\xe9d\n")
    assert "ptb.train.txt: row 2 must be UTF-8, got the byte 0xe9" in said("ptb", tmp_path)
    with pytest.raises(ConfigError, match="family must be gpt2 or llama for ptb, got 'vit'"):
        load_examples(DataConfig(name="ptb"), ModelConfig(size="tiny", image_size=32), "train")
