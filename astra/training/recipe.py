"""What `astra train` is asked to do: a YAML file as a frozen and strict pydantic model.

    recipe.yaml --load_recipe--> Recipe, or ConfigError with every fault

    model: {family: vit, size: mini, image_size: 32, num_labels: 100}    # with `checkpoint`, training starts from that
    data: {name: cifar100, folder: …}
    train: {steps: 4000, batch_size: 128, learning_rate: 0.001}
    method: {name: astra, num_groups: 1}                                 # left out: the plain model

Checks fields against one another; reads no data and no weights.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from astra import faults
from astra.config import ModelConfig
from astra.data_config import DataConfig
from astra.errors import ConfigError
from astra.model_faults import model_faults, planning_faults
from astra.section import Section, named
from astra.strategy_config import PrismConfig
from astra.strategy_faults import group_faults
from astra.training.quantiser_config import QuantiserConfig
from astra.yaml_file import read_yaml

__all__ = [
    "AstraMethod",
    "AugmentConfig",
    "Method",
    "PrismMethod",
    "Recipe",
    "TrainConfig",
    "load_recipe",
    "parse_recipe",
    "recipe_faults",
    "replace_places",
]


class AugmentConfig(Section):
    """How training images are varied; texts are not."""

    pad: int = Field(default=0, ge=0)
    """Pixels by which an image is moved at most, in each direction."""
    flip: bool = False
    """Mirror every other image, left to right."""


class TrainConfig(Section):
    """The course of a training, which a control shares."""

    steps: int = Field(ge=1)
    batch_size: int = Field(default=128, ge=1)
    learning_rate: float = Field(gt=0)
    """Peak of a cosine that rises over `warmup_steps` and ends at zero."""
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.05, ge=0)
    """Of matrices; biases and norms have none."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    weight_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the matrices that a training without a checkpoint begins with; narrow models want more."""
    gradient_clip: float = Field(default=1.0, gt=0)
    augment: AugmentConfig = AugmentConfig()
    evaluate_every: int = Field(default=500, ge=1)
    """Steps between two looks at the validation set; there is one more at the end."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many looks without a better metric, and keep the best weights; None keeps the last."""
    train_limit: int | None = Field(default=None, ge=1)
    validation_limit: int | None = Field(default=None, ge=1)
    """Examples to use at most; None for all."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Decides order, augmentation, assignment of tokens to devices, and noise."""


class AstraMethod(QuantiserConfig):
    """Train codebooks, and the model with them, for ASTRA."""

    name: Literal["astra"] = "astra"
    num_devices: int = Field(default=4, ge=2)
    """Devices that the tokens are dealt to, anew in every step."""


class PrismMethod(PrismConfig):
    """Train the model with segment means."""

    num_devices: int = Field(default=4, ge=2)


Method = Annotated[AstraMethod | PrismMethod, Field(discriminator="name")]


class Recipe(Section):
    """One training, and with a method the control that goes with it."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    method: Annotated[Method | None, BeforeValidator(named)] = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.train.warmup_steps >= self.train.steps:
            raise faults.rule_error("a recipe whose warmup_steps are fewer than its steps", "shorten the warm-up")
        return self

    @property
    def digest(self) -> str:
        """Of all that decides the result, but for the place of the data."""
        plain = self.model_dump_json(exclude={"data": {"folder"}})
        return hashlib.sha256(plain.encode()).hexdigest()[:16]

    @property
    def control(self) -> "Recipe":
        """The same training without the method."""
        return self.model_copy(update={"method": None})


def load_recipe(path: Path, *, data: str | None = None, start: str | None = None) -> Recipe:
    """Read and check a recipe; `data` replaces its data.folder and `start` its model.checkpoint.

    Raises:
        ConfigError: With every fault found.
    """
    tree = read_yaml(path)
    replace_places(tree, data, start)
    return parse_recipe(tree, where=path.name)


def replace_places(tree: dict[str, Any], data: str | None, start: str | None) -> None:
    """Put what is given in the place of data.folder and model.checkpoint in a recipe's tree."""
    for section, key, given in (("data", "folder", data), ("model", "checkpoint", start)):
        if given is not None and isinstance(tree.get(section), dict):
            tree[section][key] = given


def parse_recipe(tree: dict[str, Any], *, where: str) -> Recipe:
    """Check a recipe's tree; `where` begins every message. Raises ConfigError with every fault found."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(faults.render(where, error, Recipe)) from error
    if found := recipe_faults(where, recipe):
        raise ConfigError(found)
    return recipe


def recipe_faults(where: str, recipe: Recipe) -> list[str]:
    """List what is wrong between sections that are right by themselves."""
    model, method = recipe.model, recipe.method
    found = model_faults(where, model) or planning_faults(where, model)
    if not found and isinstance(method, AstraMethod):
        found = group_faults(where, ("method",), method, model)
    return found
