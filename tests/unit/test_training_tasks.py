"""Trainings of every kind of task and method, a few steps each: they learn, and leave what can be evaluated."""

from pathlib import Path
from typing import Any

import pytest

from astra.evaluation.config import parse_evaluation
from astra.evaluation.run import evaluate_here
from astra.training.loop import Settings
from astra.training.recipe import parse_recipe
from astra.training.start import train

TEXT = "the cat sat on the mat and the dog lay on the rug. " * 200
BETTER_THAN_CHANCE = 100.0
"""Perplexity of bytes by chance is about 512, the vocabulary."""


@pytest.fixture
def book(tmp_path: Path) -> str:
    path = tmp_path / "book.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.fixture
def reviews(tmp_path: Path) -> str:
    folder = tmp_path / "SST-2"
    folder.mkdir()
    rows = "".join(
        f"a {word} film number {n}\t{label}\n" for n in range(20) for word, label in (("good", 1), ("bad", 0))
    )
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("sentence\tlabel\n" + rows, encoding="utf-8")
    return str(folder)


def trained(out: Path, model: dict[str, Any], data: dict[str, Any], method: Any = None, **course: Any) -> float:
    tree = {"model": model, "data": data, "train": {"batch_size": 8, "evaluate_every": 50} | course, "method": method}
    return train(parse_recipe(tree, where="test"), out, Settings(), lambda *_: None).value


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_language_model_learns_its_text(tmp_path: Path, book: str, family: str) -> None:
    model = {"family": family, "size": "tiny", "num_tokens": 32}
    perplexity = trained(tmp_path / "out", model, {"name": "text", "folder": book}, steps=60, learning_rate=0.003)
    assert perplexity < BETTER_THAN_CHANCE


def test_codebooks_of_a_language_model_can_be_evaluated(tmp_path: Path, book: str) -> None:
    """The emulated metric of the training is that of the real strategy, on the same windows."""
    model, data = {"family": "gpt2", "size": "tiny", "num_tokens": 32}, {"name": "text", "folder": book}
    trained(tmp_path / "base", model, data, steps=40, learning_rate=0.003)
    method = {"name": "astra", "num_groups": 1, "num_codewords": 32}
    start = model | {"checkpoint": str(tmp_path / "base")}
    emulated = trained(tmp_path / "g1", start, data, method, steps=10, learning_rate=0.001)
    entry = {"name": "astra", "num_groups": 1, "num_codewords": 32, "checkpoint": str(tmp_path / "g1")}
    tree = {"model": start, "data": data, "split": "validation", "strategies": ["single", entry], "devices": [4]}
    outcomes = evaluate_here(parse_evaluation(tree, where="test"), lambda *_: None)
    assert outcomes[1].answers.value("perplexity") == pytest.approx(emulated, rel=1e-4)


def test_sentence_classifier_learns_which_word_matters(tmp_path: Path, reviews: str) -> None:
    model = {"family": "bert", "size": "tiny", "num_tokens": 24, "num_labels": 2}
    course = {"steps": 60, "learning_rate": 0.003, "weight_std": 0.05}
    accuracy = trained(tmp_path / "out", model, {"name": "sst2", "folder": reviews}, **course)
    assert accuracy >= 0.9


def test_model_learns_to_live_with_segment_means(tmp_path: Path) -> None:
    model = {"family": "vit", "size": "digits", "image_size": 8, "num_labels": 10}
    method = {"name": "prism", "num_segments": 1}
    course = {"steps": 150, "batch_size": 64, "learning_rate": 0.003, "weight_std": 0.08}
    assert trained(tmp_path / "out", model, {"name": "digits"}, method, **course) > 0.5
