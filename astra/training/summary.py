"""What a finished training says of itself, in `summary.json`, with the recipe beside it."""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from astra.training.recipe import Recipe

__all__ = ["RECIPE_FILE", "SUMMARY_FILE", "Summary", "read_finished", "read_summary", "write_summary"]

SUMMARY_FILE = "summary.json"
RECIPE_FILE = "recipe.json"


class Summary(BaseModel):
    """The result of one training."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    recipe_digest: str
    method: str
    """`none`, or the method's name."""
    metric: str
    value: float
    """On the validation set, of the weights that were kept."""
    test_value: float | None = None
    """On the test set, where one was asked for."""
    steps: int
    kept_step: int


def write_summary(folder: Path, summary: Summary, recipe: Recipe) -> None:
    """Write both files; the summary last, since it says that the training is finished."""
    kept = recipe.model_dump(mode="json", exclude={"data": {"folder"}})
    (folder / RECIPE_FILE).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    (folder / SUMMARY_FILE).write_text(summary.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_finished(folder: Path, recipe: Recipe) -> Summary | None:
    """Read the summary of a training of this very recipe; None where there is none."""
    summary = read_summary(folder)
    return summary if summary is not None and summary.recipe_digest == recipe.digest else None


def read_summary(folder: Path) -> Summary | None:
    """Read a finished training's summary; None where there is none."""
    try:
        return Summary.model_validate_json((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
