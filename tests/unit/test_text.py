"""Texts: calibration and requests share no passage, windows repeat, what cannot be read is named; tokenizers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers

from astra.config import InputConfig, ModelConfig
from astra.data import Purpose, load_inputs, to_input
from astra.data.text import load_texts
from astra.errors import ConfigError
from astra.tokenizer import ByteTokenizer, load_tokenizer

MODEL = ModelConfig(family="gpt2", size="tiny", num_tokens=40)
SAMPLE = InputConfig()
SPLITS: tuple[Purpose, Purpose] = ("calibrate", "request")


def text_of(ids: Any) -> str:
    return ByteTokenizer().decode(int(each) for each in np.ravel(ids))


def test_texts_have_the_asked_shape_and_are_words():
    ids = load_texts(SAMPLE, MODEL, 5, "request")
    assert (ids.shape, ids.dtype) == ((5, 40), np.int64)
    assert " the " in text_of(load_texts(SAMPLE, MODEL, 50, "request"))


def test_texts_repeat_and_do_not_depend_on_the_count():
    many = load_texts(SAMPLE, MODEL, 9, "calibrate")
    assert np.array_equal(many, load_texts(SAMPLE, MODEL, 9, "calibrate"))
    assert np.array_equal(many[:4], load_texts(SAMPLE, MODEL, 4, "calibrate"))
    assert len({row.tobytes() for row in many}) == 9


def test_sample_splits_share_no_module():
    passages = {split: text_of(load_texts(SAMPLE, MODEL, 400, split)) for split in SPLITS}
    lines = {split: {line for line in text.splitlines() if len(line) > 40} for split, text in passages.items()}
    assert min(len(found) for found in lines.values()) > 50
    assert len(lines["calibrate"] & lines["request"]) < 3, "only phrases that modules share"


def test_file_splits_are_its_halves(tmp_path: Path):
    (tmp_path / "book.txt").write_text("a" * 500 + "b" * 500)
    book = InputConfig(text=str(tmp_path / "book.txt"))
    for split, letter in (("calibrate", "a"), ("request", "b")):
        ids = load_texts(book, MODEL, 20, split)  # type: ignore[arg-type]
        assert set(text_of(ids)) == {letter}
        assert ids.shape == (20, 40), "once the text is used up, windows begin at other places"


def test_folder_splits_are_halves_of_its_files(tmp_path: Path):
    for name, letter in (("1.txt", "a"), ("2.md", "b"), ("3.rst", "c"), ("4.TXT", "d"), ("5.csv", "x")):
        (tmp_path / name).write_text(letter * 60)
    folder = InputConfig(text=str(tmp_path))
    assert set(text_of(load_texts(folder, MODEL, 3, "calibrate"))) == {"a", "b"}
    assert set(text_of(load_texts(folder, MODEL, 3, "request"))) == {"c", "d"}


def test_folder_with_one_text_is_refused(tmp_path: Path):
    (tmp_path / "one.txt").write_text("alone")
    with pytest.raises(ConfigError, match=r"at least 2 texts .*got \['one.txt'\]"):
        load_texts(InputConfig(text=str(tmp_path)), MODEL, 1, "request")


def test_text_that_is_too_short_or_not_utf8_is_refused(tmp_path: Path):
    path = tmp_path / "short.txt"
    path.write_text("a" * 79)
    with pytest.raises(ConfigError, match="must hold at least 40 tokens to calibrate on, got 39"):
        load_texts(InputConfig(text=str(path)), MODEL, 1, "calibrate")
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match=r"short.txt: text must be readable UTF-8, got .*codec"):
        load_texts(InputConfig(text=str(path)), MODEL, 1, "calibrate")


def test_load_inputs_goes_by_the_model():
    assert load_inputs(SAMPLE, MODEL, 2, "request").shape == (2, 40)
    assert load_inputs(SAMPLE, ModelConfig(size="tiny", image_size=32), 2, "request").shape == (2, 3, 32, 32)


def test_ids_are_inputs_as_they_are():
    ids = np.array([[1, 300]], np.int64)
    assert to_input(ids).tolist() == [[1, 300]]


def test_bytes_survive_both_ways_and_other_ids_are_shown():
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode("naïve – 試")) == "naïve – 試"
    assert tokenizer.decode([72, 105, 400]) == "Hi<400>"


def test_checkpoint_brings_its_own_tokenizer(tmp_path: Path):
    fast = FastTokenizer(models.WordLevel({"one": 7, "two": 9, "[UNK]": 0}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(MODEL.model_copy(update={"checkpoint": str(tmp_path)}))
    assert tokenizer.encode("two one three") == [9, 7, 0]
    assert tokenizer.decode([7, 9]) == "one two"
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer.json: file must be a tokenizer"):
        load_tokenizer(MODEL.model_copy(update={"checkpoint": str(tmp_path)}))
    (tmp_path / "tokenizer.json").unlink()
    assert isinstance(load_tokenizer(MODEL.model_copy(update={"checkpoint": str(tmp_path)})), ByteTokenizer)
