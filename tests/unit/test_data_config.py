"""The `data` section: what a set can and cannot be asked for. And tokenizers from published vocabularies."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from astra.config import ModelConfig
from astra.data_config import DataConfig
from astra.errors import ConfigError
from astra.tokenizer import ByteTokenizer, load_tokenizer, open_tokenizer

GPT2 = ModelConfig(family="gpt2", size="tiny", num_tokens=8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "cifar"}, "Input should be 'digits', "),
        ({"name": "digits", "folder": "x"}, "a set of files where folder is given; digits needs none; leave it out"),
        ({"name": "text"}, "a set with a folder; text stands for files of yours; add folder"),
        ({"name": "cbt-style", "subset": "CN"}, "a set with a folder; cbt-style stands for files of yours"),
        ({"name": "cbt"}, "a set with a subset; add subset: one of NE, CN, V, P"),
        ({"name": "cbt-style", "folder": "x", "subset": "NE"}, "one of CN, V, P for cbt-style; got subset 'NE'"),
        ({"name": "mnli", "subset": "both"}, "one of matched, mismatched for mnli; got subset 'both'; correct it"),
        ({"name": "sst2", "subset": "x"}, "a set whose subset is left out for sst2; got subset 'x'"),
        ({"name": "cifar10", "tokenizer": "x"}, "a set of texts where tokenizer is given; cifar10 are images"),
    ],
)
def test_section_refuses_what_no_set_has(given: dict[str, Any], said: str):
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate(given)
    assert said in str(caught.value)


def write_gpt2(folder: Path, prefix: str = "", names: tuple[str, str] = ("encoder.json", "vocab.bpe")) -> None:
    words = ["h", "i", "\u0120", "hi", "\u0120hi", "<|endoftext|>"]
    (folder / f"{prefix}{names[0]}").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / f"{prefix}{names[1]}").write_text("#version: 0.2\nh i\n\u0120 hi\n", encoding="utf-8")


def write_bert(folder: Path, *words: str, prefix: str = "") -> None:
    lines = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words)
    (folder / f"{prefix}vocab.txt").write_text("".join(f"{word}\n" for word in lines))


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_gpt2_vocabulary_makes_byte_pairs(tmp_path: Path, names: tuple[str, str]):
    write_gpt2(tmp_path, names=names)
    tokenizer = open_tokenizer(tmp_path, "gpt2")
    assert tokenizer.encode("hi hi h") == [3, 4, 2, 0]
    assert tokenizer.decode([3, 4]) == "hi hi"
    assert (tokenizer.num_ids, tokenizer.pad_id, tokenizer.separator_id) == (6, 5, 5)
    assert open_tokenizer(tmp_path / names[0], "gpt2").encode_all(["hi", "h"]) == [[3], [0]]


def test_bert_vocabulary_makes_word_pieces(tmp_path: Path):
    write_bert(tmp_path, "play", "##ing", "cafe", "!")
    tokenizer = open_tokenizer(tmp_path, "bert")
    assert tokenizer.encode("Playing café! x") == [5, 6, 7, 8, 1]
    assert tokenizer.decode([5, 6, 8]) == "playing!"
    assert (tokenizer.pad_id, tokenizer.separator_id) == (0, 3)
    write_bert(tmp_path, "Play", "play")
    assert open_tokenizer(tmp_path / "vocab.txt", "bert").encode("Play play") == [5, 6], "a cased vocabulary"


def test_family_chooses_in_a_folder_of_several(tmp_path: Path):
    write_gpt2(tmp_path, prefix="gpt2_")
    write_bert(tmp_path, "hi", prefix="bert_")
    assert open_tokenizer(tmp_path, "llama").num_ids == 6
    assert open_tokenizer(tmp_path, "bert").encode("hi") == [5]


def test_tokenizer_describes_itself_for_a_checkpoint(tmp_path: Path):
    write_gpt2(tmp_path)
    described = open_tokenizer(tmp_path, "gpt2").to_json()
    assert described is not None
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "tokenizer.json").write_text(described, encoding="utf-8")
    own = load_tokenizer(GPT2.model_copy(update={"checkpoint": str(tmp_path / "checkpoint")}), given="elsewhere")
    assert own.encode("hi hi") == [3, 4], "the checkpoint's own goes first"
    assert ByteTokenizer().to_json() is None


def test_tokenizer_faults_say_what_to_do(tmp_path: Path):
    def said(given: Path, model: ModelConfig = GPT2) -> str:
        with pytest.raises(ConfigError) as caught:
            load_tokenizer(model, str(given))
        return str(caught.value)

    assert "must be a file or folder with tokenizer.json or encoder.json with vocab.bpe" in said(tmp_path)
    assert f"got '{tmp_path / 'none'}'; name another" in said(tmp_path / "none")
    write_gpt2(tmp_path, prefix="a_")
    write_gpt2(tmp_path, prefix="b_")
    assert "must hold one tokenizer of a kind, got a_encoder.json, b_encoder.json; name the one" in said(tmp_path)
    assert open_tokenizer(tmp_path / "b_vocab.bpe", "gpt2").num_ids == 6
    (tmp_path / "a_encoder.json").write_text("{")
    assert "a_encoder.json: file must be a vocabulary, got" in said(tmp_path / "a_encoder.json")
    words = tmp_path / "words"
    words.mkdir()
    write_bert(words, *(f"word{number}" for number in range(600)))
    bert = ModelConfig(family="bert", size="tiny", num_tokens=8)
    assert "must be a tokenizer of at most the model's 512 ids, got 605" in said(words, bert)
    (words / "vocab.txt").write_bytes(b"\xff\n")
    assert "vocab.txt: file must be a vocabulary" in said(words, bert)
