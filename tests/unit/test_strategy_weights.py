"""Weights of a strategy's own, and a labelled set for a benchmark: what the check of a config says of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from astra.config import ModelConfig
from astra.config_file import parse_config
from astra.errors import ConfigError
from astra.models import build_model, save_checkpoint
from astra.strategy_config import AstraConfig, PrismConfig, SingleConfig, TensorConfig

MODEL = {"size": "tiny", "image_size": 64, "num_labels": 10}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("weights") / "tuned"
    save_checkpoint(folder, build_model(ModelConfig(size="tiny", image_size=64, num_labels=10, seed=5)))
    return str(folder)


def faults_of(strategies: list[Any], **sections: Any) -> list[str]:
    text = json.dumps({"model": MODEL, "strategies": strategies} | sections)
    try:
        parse_config(text, where="bench.json", command="bench")
    except ConfigError as error:
        return list(error.faults)
    return []


def test_settings_tell_weights_apart() -> None:
    assert SingleConfig(checkpoint="runs/control").settings == "weights=control"
    assert AstraConfig(checkpoint="runs/g1").settings == "G=1 weights=g1"
    assert PrismConfig(num_segments=2, checkpoint="runs/g1", label="tuned").settings == "Ls=2 tuned"
    assert TensorConfig().settings == "wire=fp32"


def test_single_may_follow_single_with_other_weights(checkpoint: str) -> None:
    assert faults_of(["single", {"name": "single", "checkpoint": checkpoint}, "tensor"]) == []
    (fault,) = faults_of(["tensor", {"name": "single", "checkpoint": checkpoint}])
    assert "single comes first" in fault


def test_entries_with_folders_of_one_name_need_labels(checkpoint: str) -> None:
    astra = {"name": "astra", "num_codewords": 16, "checkpoint": checkpoint}
    (fault,) = faults_of(["single", astra, astra | {"checkpoint": checkpoint + "/"}])
    assert fault.startswith("bench.json: strategies[2] must be different from strategies[1]")
    assert fault.endswith("give it a `label`, since their folders have one name")
    assert faults_of(["single", astra, astra | {"checkpoint": checkpoint + "/", "label": "again"}]) == []


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    (fault,) = faults_of(["single", {"name": "prism", "num_segments": 2, "checkpoint": str(tmp_path)}])
    assert fault == (
        "bench.json: strategies[1].checkpoint must be a folder with config.json and model.safetensors, "
        f"got {str(tmp_path)!r}; missing: config.json, model.safetensors"
    )


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, build_model(ModelConfig(size="digits", image_size=8, num_labels=10)))
    (fault,) = faults_of([{"name": "single", "checkpoint": str(tmp_path)}])
    assert fault.startswith("bench.json: strategies[0].checkpoint must be a checkpoint of size 'tiny', got ")


def test_weights_of_another_size_than_the_checkpoint_are_refused(checkpoint: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, build_model(ModelConfig(size="digits", image_size=8, num_labels=10)))
    model = {"checkpoint": checkpoint}
    (fault,) = faults_of([{"name": "single", "checkpoint": str(tmp_path)}], model=model)
    assert fault.startswith("bench.json: strategies[0].checkpoint must be a checkpoint of the model's sizes, got ")


def test_accuracy_may_have_a_model_and_settings_of_its_own(checkpoint: str) -> None:
    tuned = {"name": "astra", "num_codewords": 16, "checkpoint": checkpoint}
    accuracy = {"data": {"name": "digits"}, "model": {"checkpoint": checkpoint}, "strategies": ["single", tuned]}
    assert faults_of(["single", "astra"], accuracy=accuracy) == []


def test_accuracy_faults_are_located_and_reported_together() -> None:
    accuracy = {
        "data": {"name": "wikitext2"},
        "model": {"size": "digits", "image_size": 9},
        "strategies": ["single", {"name": "astra", "num_groups": 7}, "tensor"],
    }
    found = faults_of(["single", "astra"], accuracy=accuracy)
    assert [fault.removeprefix("bench.json: ").split(" must")[0] for fault in found] == [
        "accuracy.model.image_size",
        "accuracy.strategies",
        "accuracy.strategies[1].num_groups",
        "accuracy.data.name",
    ]


def test_accuracy_names_unknown_keys() -> None:
    accuracy = {"data": {"name": "digits"}, "batch": 3, "strategies": [{"name": "astra", "groups": 3}]}
    first, second = faults_of(["single"], accuracy=accuracy)
    assert "bench.json: accuracy must be a mapping without unknown keys, got 'batch'" in second
    assert "bench.json: accuracy.strategies[0] must be a mapping without unknown keys, got 'groups'" in first


def test_accuracy_is_for_bench_alone() -> None:
    text = json.dumps(
        {
            "model": {"family": "gpt2", "size": "tiny", "num_tokens": 8},
            "strategies": ["single"],
            "generation": {"max_new_tokens": 3},
            "accuracy": {"data": {"name": "digits"}},
        }
    )
    with pytest.raises(ConfigError, match="accuracy must be left out"):
        parse_config(text, where="generate.json", command="generate")
