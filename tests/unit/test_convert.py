"""Converted models answer as their own formats say; damaged and foreign files are refused."""

import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models as tokenizer_models
from transformers import BertConfig, BertForSequenceClassification, BertModel
from typer.testing import CliRunner

from astra.cli import app
from astra.config import ModelConfig
from astra.convert import convert_llama2c, convert_minilm
from astra.convert.llama2c import Header, read_weights
from astra.convert.llama2c_tokenizer import read_tokens
from astra.errors import ConfigError
from astra.models import load_model
from astra.tokenizer import load_tokenizer

EQUAL = 1e-4  # relative; fp32 in another order over two layers
TEXT = ["t", "h", "e", " ", "a", "n", "d", " t", "he", " the", "an", "and", " and", "é", "ha"]
SCORES = dict(zip(TEXT, [*range(-100, -93), 0.0, -1.0, -2.0, -5.0, -4.0, -3.0, -90.0, -6.0], strict=True))
TOKENS = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), *TEXT]
SHARED = Header(width=16, hidden=20, num_layers=2, num_heads=4, num_kv_heads=2, vocabulary=len(TOKENS), positions=12)
OWN_HEAD = Header(**{**vars(SHARED), "vocabulary": -len(TOKENS), "num_kv_heads": 4})
Array = NDArray[np.float32]


def write_weights(path: Path, header: Header) -> None:
    """Write random weights by the format's own order."""
    vocabulary, width, hidden, layers = abs(header.vocabulary), header.width, header.hidden, header.num_layers
    kv_width = width * header.num_kv_heads // header.num_heads
    angles = 2 * header.positions * (width // header.num_heads // 2)
    counts = [vocabulary * width, layers * width, layers * width * (2 * width + 2 * kv_width), layers * width]
    counts += [3 * layers * width * hidden, width, angles]
    counts += [vocabulary * width] if header.vocabulary < 0 else []
    drawn = np.random.default_rng(1).normal(0, 0.4, sum(counts)).astype("<f4")
    path.write_bytes(struct.pack("<7i", *vars(header).values()) + drawn.tobytes())


def write_tokens(path: Path) -> None:
    data = struct.pack("<i", max(map(len, TOKENS)))
    for text in TOKENS:
        raw = text.encode()
        data += struct.pack("<fi", SCORES.get(text, 0.0), len(raw)) + raw
    path.write_bytes(data)


@pytest.fixture(params=[SHARED, OWN_HEAD], ids=["shared", "own_head"])
def header(request: pytest.FixtureRequest) -> Header:
    return request.param


@pytest.fixture
def files(header: Header, tmp_path: Path) -> tuple[Path, Path]:
    write_weights(tmp_path / "model.bin", header)
    write_tokens(tmp_path / "tokens.bin")
    return tmp_path / "model.bin", tmp_path / "tokens.bin"


def norm(x_TD: Array, weight_D: Array) -> Array:
    return x_TD / np.sqrt((x_TD**2).mean(-1, keepdims=True) + 1e-5) * weight_D


def turn(x_THd: Array) -> Array:
    """Turn neighbours (2i, 2i + 1) of position p by p · 10000^(-2i/d), as llama2.c does."""
    width = x_THd.shape[-1]
    angles_Ta = np.arange(len(x_THd))[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    as_complex = (x_THd[..., ::2] + 1j * x_THd[..., 1::2]) * np.exp(1j * angles_Ta)[:, None]
    return np.stack((as_complex.real, as_complex.imag), axis=-1).reshape(x_THd.shape)


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def reference_logits(header: Header, tensors: dict[str, Array], ids: list[int]) -> Array:
    """Compute the last token's logits as llama2.c's run.c does, in numpy."""
    x_TD, head_width = tensors["embed_tokens"][ids], header.width // header.num_heads
    for layer in range(header.num_layers):
        u_TD = norm(x_TD, tensors["input_layernorm"][layer])
        q, k, v = ((u_TD @ tensors[f"{name}_proj"][layer].T).reshape(len(ids), -1, head_width) for name in "qkv")
        group = header.num_heads // header.num_kv_heads
        q, k, v = turn(q), np.repeat(turn(k), group, axis=1), np.repeat(v, group, axis=1)
        scores_HTT = np.einsum("thd,shd->hts", q, k) / np.sqrt(head_width)
        scores_HTT[:, np.triu(np.ones((len(ids), len(ids)), dtype=bool), 1)] = -np.inf
        context_TD = np.einsum("hts,shd->thd", softmax(scores_HTT), v).reshape(len(ids), -1)
        x_TD = x_TD + context_TD @ tensors["o_proj"][layer].T
        h_TD = norm(x_TD, tensors["post_attention_layernorm"][layer])
        gate = h_TD @ tensors["gate_proj"][layer].T
        hidden = gate / (1 + np.exp(-gate)) * (h_TD @ tensors["up_proj"][layer].T)
        x_TD = x_TD + hidden @ tensors["down_proj"][layer].T
    head = tensors.get("lm_head", tensors["embed_tokens"])
    return norm(x_TD[-1], tensors["norm"]) @ head.T


def test_llama2c_model_answers_as_its_format_says(header: Header, files: tuple[Path, Path], tmp_path: Path) -> None:
    convert_llama2c(*files, tmp_path / "out")
    ids = [1, 260, 7, 265, 270, 262, 259]
    model = load_model(ModelConfig(family="llama", checkpoint=str(tmp_path / "out"), num_tokens=len(ids)))
    found = model.forward(torch.tensor([ids]))[0].numpy()
    expected = reference_logits(*read_weights(files[0]), ids)
    np.testing.assert_allclose(found, expected, rtol=EQUAL, atol=EQUAL * np.abs(expected).max())


def encode_like_llama2c(text: str) -> list[int]:
    """Join neighbours by the best score of their sum, over and over."""
    ids = {text: number for number, text in enumerate(TOKENS)}
    parts = [" "]
    for letter in text:
        parts += [letter] if letter in ids else [f"<0x{byte:02X}>" for byte in letter.encode()]
    while True:
        sums = [left + right for left, right in itertools.pairwise(parts)]
        best = max((each for each in sums if each in SCORES), key=lambda each: SCORES[each], default=None)
        if best is None:
            return [ids[part] for part in parts]
        place = sums.index(best)
        parts[place : place + 2] = [best]


@pytest.mark.parametrize("header", [SHARED], indirect=True, ids=["shared"])
@pytest.mark.parametrize("text", ["the", "and the hand", "thethe and", "né\nd", "  a  t", "andand", "日本 the"])
def test_llama2c_tokenizer_encodes_as_its_format_says(files: tuple[Path, Path], text: str, tmp_path: Path) -> None:
    convert_llama2c(*files, tmp_path / "out")
    tokenizer = load_tokenizer(ModelConfig(family="llama", checkpoint=str(tmp_path / "out"), num_tokens=4))
    assert tokenizer.encode(text) == encode_like_llama2c(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("cut", "fault"),
    [
        (slice(0, 20), "file must begin with 7 sizes of 4 bytes, got 20 bytes; copy it again"),
        (slice(0, -4), "file must be .* bytes for its sizes, got .*; copy it again"),
        (slice(4, None), "file must begin with the sizes of a Llama, got 20, 2, 4, 2, "),
    ],
)
@pytest.mark.parametrize("header", [SHARED], indirect=True, ids=["shared"])
def test_llama2c_weights_that_are_damaged_are_refused(
    files: tuple[Path, Path], cut: slice, fault: str, tmp_path: Path
) -> None:
    files[0].write_bytes(files[0].read_bytes()[cut])
    with pytest.raises(ConfigError, match=rf"model.bin: {fault}"):
        convert_llama2c(*files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("header", [SHARED], indirect=True, ids=["shared"])
def test_llama2c_of_a_later_version_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    files[0].write_bytes(struct.pack("<2i", 0x616B3432, 2) + bytes(300))
    with pytest.raises(ConfigError, match="must be of version 0, got version 2; export it with --version 0"):
        convert_llama2c(*files, tmp_path / "out")


@pytest.mark.parametrize("header", [SHARED], indirect=True, ids=["shared"])
def test_llama2c_tokenizer_that_is_damaged_or_foreign_is_refused(files: tuple[Path, Path]) -> None:
    whole = files[1].read_bytes()
    assert read_tokens(files[1], len(TOKENS))[1] == ("<s>", 0.0)
    with pytest.raises(ConfigError, match=f"must hold the model's 9 tokens, got {len(TOKENS)}"):
        read_tokens(files[1], 9)
    files[1].write_bytes(whole[:-1])
    with pytest.raises(ConfigError, match=r"must be a whole llama2.c tokenizer, got token .* is cut short"):
        read_tokens(files[1], len(TOKENS))
    files[1].write_bytes(whole.replace(b"<unk>", b"<odd>"))
    with pytest.raises(ConfigError, match=r"must hold different tokens, of which the first are <unk>"):
        read_tokens(files[1], len(TOKENS))


@pytest.mark.parametrize("header", [SHARED], indirect=True, ids=["shared"])
def test_cli_converts_llama2c_and_says_what_is_wrong(files: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ["convert", "llama2c", *map(str, files), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    files[0].unlink()
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 2
    assert "model.bin: file must be readable, got" in outcome.stderr


ENCODER = BertConfig(
    vocab_size=40, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
    max_position_embeddings=16,
)  # fmt: skip


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """Save an encoder without a head as the package carries one, whose tokenizer cuts and pads texts."""
    folder = tmp_path / "encoder"
    BertModel(ENCODER).save_pretrained(folder)
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "the": 4}
    tokenizer = FastTokenizer(tokenizer_models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.enable_padding(length=7)
    tokenizer.enable_truncation(5)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_minilm_keeps_the_encoder_and_draws_a_head(encoder: Path, tmp_path: Path) -> None:
    found = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        convert_minilm(tmp_path / name, num_labels=3, seed=seed, source=encoder)
        found[name] = BertForSequenceClassification.from_pretrained(tmp_path / name).state_dict()
    for key, value in BertModel.from_pretrained(encoder).state_dict().items():
        assert torch.equal(found["a"][f"bert.{key}"], value)
    assert torch.equal(found["a"]["classifier.weight"], found["b"]["classifier.weight"])
    assert not torch.equal(found["a"]["classifier.weight"], found["c"]["classifier.weight"])
    config = ModelConfig(family="bert", checkpoint=str(tmp_path / "a"), num_tokens=9)
    assert load_model(config).shape.num_outputs == config.num_classes == 3
    tokenizer = load_tokenizer(config)
    assert tokenizer.encode("the") == [4]
    assert json.loads((tmp_path / "a" / "tokenizer.json").read_text())["padding"] is None


def test_tokenizer_that_cuts_and_pads_encodes_whole_texts(encoder: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(family="bert", checkpoint=str(encoder), num_tokens=9))
    assert tokenizer.encode("the") == [4]


def test_minilm_that_is_damaged_is_refused(encoder: Path, tmp_path: Path) -> None:
    weights = encoder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ConfigError, match=r"model.safetensors must be whole, got"):
        convert_minilm(tmp_path / "out", source=encoder)
    weights.unlink()
    with pytest.raises(ConfigError, match=r"encoder must hold model.safetensors, got no such file"):
        convert_minilm(tmp_path / "out", source=encoder)


def test_minilm_of_another_shape_names_every_tensor(encoder: Path, tmp_path: Path) -> None:
    path = encoder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 24}))
    with pytest.raises(ConfigError) as caught:
        convert_minilm(tmp_path / "out", source=encoder)
    assert len(caught.value.faults) == 6, "two matrices and a bias in each of two layers"


def test_minilm_without_the_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("astra.convert.minilm.PACKAGE", "no_such_package_is_installed")
    outcome = CliRunner().invoke(app, ["convert", "minilm", "--out", str(tmp_path)])
    assert outcome.exit_code == 2
    assert "must be installed, got no such package; pip install 'astra-testbed[minilm]'" in outcome.stderr
