"""Studies: trainings for every seed, tables of them, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from astra.config import ModelConfig
from astra.errors import ConfigError
from astra.models import build_model, save_checkpoint
from astra.study import load_study, make_tables, train_all
from astra.training.loop import Settings
from astra.yaml_file import read_yaml

STUDY = """
original:
  model: {family: vit, size: digits, image_size: 8, num_labels: 10}
  data: {name: digits}
  train: {steps: 3, batch_size: 16, learning_rate: 0.001}
finetune: {steps: 2, batch_size: 16, learning_rate: 0.001}
seeds: [0, 1]
methods:
  g1: {name: astra, num_groups: 1, num_codewords: 16}
tables:
  - {title: Trained, ablation: [g1]}
  - title: Run
    evaluation:
      strategies: [single, {name: astra, num_groups: 1, num_codewords: 16, checkpoint: "{g1}"}]
      devices: [2]
      limit: 20
"""
METHOD = "num_groups: 1, num_codewords: 16}\n"
SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("study-*.yaml"))


def written(folder: Path, text: str = STUDY) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def silent(*_: Any) -> None:
    pass


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_study_is_read(path: Path, tmp_path: Path) -> None:
    """Some want `--data`, and those that name no size want `--start`."""
    text = path.read_text(encoding="utf-8")
    data, start = "somewhere" if "--data" in text else None, None
    if " size: " not in text:
        family = read_yaml(path)["original"]["model"]["family"]
        model = ModelConfig.model_validate({"family": family, "size": "tiny", "num_tokens": 64})
        save_checkpoint(tmp_path, build_model(model))
        start = str(tmp_path)
    assert load_study(path, data=data, start=start).methods


def test_study_trains_every_seed_and_writes_tables(tmp_path: Path) -> None:
    study, out = load_study(written(tmp_path)), tmp_path / "out"
    trained = train_all(study, out, Settings(), None, lambda _: silent)
    tables = make_tables(study, trained, out, silent)
    assert {path.name for path in out.iterdir()} >= {"original", "control-0", "control-1", "g1-0", "g1-1", "tables.md"}
    assert "### Trained" in tables
    lines = [line for line in tables.splitlines() if line.startswith("|")]
    assert any(line.startswith("| g1 ") and " ± " in line for line in lines)
    assert any("astra G=1 K=16 weights=g1|" in line.replace(" |", "|") for line in lines)
    assert str(tmp_path) not in tables


def test_study_can_be_about_the_validation_split(tmp_path: Path) -> None:
    path = written(tmp_path, "split: validation\n" + STUDY.replace("seeds: [0, 1]", "seeds: [0]"))
    study, out = load_study(path), tmp_path / "out"
    trained = train_all(study, out, Settings(), None, lambda _: silent)
    make_tables(study, trained, out, silent)
    (summary,) = trained.summaries["g1"]
    assert summary.test_value == summary.value
    assert json.loads((out / "table-1" / "evaluation.json").read_text())["config"]["split"] == "validation"


def test_finished_trainings_and_evaluations_are_not_done_again(tmp_path: Path) -> None:
    study, out, names = load_study(written(tmp_path)), tmp_path / "out", list[str]()
    first = make_tables(study, train_all(study, out, Settings(), None, lambda _: silent), out, silent)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}

    def evaluated(title: str, done: int, total: int) -> None:
        names.append(title)

    again = make_tables(study, train_all(study, out, Settings(), None, lambda _: silent), out, evaluated)
    assert again == first
    assert names == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("ablation: [g1]", "ablation: [g2]", "a study whose ablations are methods"),
        ("ablation: [g1]", "ablation: []", "a table with either ablation or evaluation"),
        ("g1: {name: astra", "control: {name: astra", "no method called control"),
        ("seeds: [0, 1]", "seeds: []", "seeds must be a list of at least 1"),
        ("finetune:", "finetunes:", "a mapping without unknown keys, got 'finetunes'; did you mean 'finetune'?"),
        ("{steps: 2,", "{step: 2,", "finetune must be .* got 'step'; did you mean 'steps'"),
        (METHOD, "groups: 1}\n", "methods.g1 must be .* got 'groups'; did you mean 'num_groups'"),
        (METHOD, "num_codewords: 3}\n", "methods.g1.num_codewords must be a power of two"),
        (METHOD, "num_groups: 5}\n", "methods.g1.num_groups must be a divisor of the model's width 48, got 5"),
        ("image_size: 8", "image_size: 9", "original.model.image_size must be a multiple of the patch size 2, got 9"),
    ],
)
def test_fault_in_a_study_is_said(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_study(written(tmp_path, STUDY.replace(old, new)))
