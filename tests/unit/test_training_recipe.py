"""Recipes: what is read, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from astra.config import ModelConfig
from astra.errors import ConfigError
from astra.models import build_model, save_checkpoint
from astra.training.recipe import AstraMethod, PrismMethod, load_recipe, parse_recipe

RECIPES = [
    path
    for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
    if not path.name.startswith(("study-", "evaluate-"))
]


@pytest.fixture(scope="module")
def small_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a checkpoint that is quickly made, in the place of a converted MiniLM."""
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder, build_model(ModelConfig(family="bert", size="tiny", num_tokens=64)))
    return folder


def tree(**changes: Any) -> dict[str, Any]:
    return {
        "model": {"family": "vit", "size": "digits", "image_size": 8, "num_labels": 10},
        "data": {"name": "digits"},
        "train": {"steps": 10, "learning_rate": 0.001},
    } | changes


def faults_of(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(tree(**changes), where="r.yaml")
    return str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_shipped_recipe_is_read(path: Path, small_bert: Path) -> None:
    """Some want `--data`, and the one for MiniLM wants `--start`."""
    text = path.read_text(encoding="utf-8")
    data = "somewhere" if "--data" in text else None
    recipe = load_recipe(path, data=data, start=None if " size: " in text else str(small_bert))
    assert recipe.train.steps > 0


def test_method_by_name_alone_has_its_defaults() -> None:
    recipe = parse_recipe(tree(method="astra"), where="r.yaml")
    assert isinstance(recipe.method, AstraMethod)
    assert (recipe.method.num_groups, recipe.method.noise, recipe.method.num_devices) == (1, 1.0, 4)


def test_prism_method_takes_segments() -> None:
    recipe = parse_recipe(tree(method={"name": "prism", "num_segments": 2}), where="r.yaml")
    assert isinstance(recipe.method, PrismMethod)
    assert recipe.control.method is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": {"learning_rate": 0.1}}, "r.yaml: train.steps must be given, got nothing"),
        ({"train": {"steps": 0, "learning_rate": 0.1}}, "train.steps must be at least 1, got 0"),
        ({"train": {"steps": 5, "learning_rate": 0.1, "warmup_steps": 5}}, "warmup_steps are fewer than its steps"),
        ({"method": {"name": "asta"}}, "method.name must be one of astra, prism, got 'asta'; did you mean 'astra'?"),
        (
            {"method": {"name": "astra", "num_groups": 7}},
            "method.num_groups must be a divisor of the model's width 48",
        ),
        ({"method": {"name": "astra", "groups": 1}}, "did you mean 'num_groups'?"),
        ({"method": {"name": "prism"}}, "given either num_segments or compression_ratio"),
        ({"data": {"name": "digit"}}, "did you mean 'digits'?"),
        ({"tran": {}}, "did you mean 'train'?"),
    ],
)
def test_fault_says_field_rule_and_way_out(changes: dict[str, Any], said: str) -> None:
    assert said in faults_of(**changes)


def test_all_faults_are_said_at_once() -> None:
    found = faults_of(train={"steps": 0, "learning_rate": -1, "batch_size": 0}).splitlines()
    assert len(found) == 3


def test_options_replace_data_and_start(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: {family: vit, size: mini, image_size: 32, num_labels: 10}\ndata: {name: cifar10}\n"
        "train: {steps: 1, learning_rate: 1e-3}\n"
    )
    assert load_recipe(path, data="/there").data.folder == "/there"
    with pytest.raises(ConfigError, match=r"checkpoint must be a folder with config\.json"):
        load_recipe(path, start=str(tmp_path / "nothing"))
