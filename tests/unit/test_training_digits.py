"""The whole way on real data: digits from scratch, then ASTRA with one code a token, in a minute of one core."""

from pathlib import Path

import pytest

from astra.training.loop import Settings
from astra.training.recipe import parse_recipe
from astra.training.start import train

MODEL = {"family": "vit", "size": "digits", "image_size": 8, "num_labels": 10}
SINGLE_AT_LEAST = 0.95
ASTRA_AT_LEAST = 0.92


@pytest.mark.training
@pytest.mark.timeout(600)
def test_digits_reach_their_accuracy_on_one_device_and_on_four(tmp_path: Path) -> None:
    course = {"batch_size": 128, "augment": {"pad": 1}, "label_smoothing": 0.1, "warmup_steps": 50}
    scratch = course | {"steps": 600, "learning_rate": 0.002, "weight_std": 0.08}
    tree = {"model": MODEL, "data": {"name": "digits"}, "train": scratch}
    settings = Settings(judged_on="test")
    single = train(parse_recipe(tree, where="test"), tmp_path / "single", settings, lambda *_: None)
    tree = {
        "model": MODEL | {"checkpoint": str(tmp_path / "single")},
        "data": {"name": "digits"},
        "train": course | {"steps": 200, "learning_rate": 0.0005},
        "method": {"name": "astra", "num_groups": 1, "num_codewords": 256},
    }
    four = train(parse_recipe(tree, where="test"), tmp_path / "astra", settings, lambda *_: None)
    assert single.test_value is not None
    assert four.test_value is not None
    assert single.test_value >= SINGLE_AT_LEAST
    assert four.test_value >= ASTRA_AT_LEAST
