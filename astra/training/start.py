"""Start a training, go on with one that was cut off, or read what a finished one came to.

finetune: control, if there is a method ──► ensure_trained      folder ──► finished: its summary
          the recipe itself ──► train                                 ├──► begun:    `loop` from its state on
                                                                      └──► else:     `loop` from the first step
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from astra.errors import ConfigError
from astra.training.loop import Report, Settings, Training
from astra.training.recipe import Recipe
from astra.training.state import STATE_FILE, read_state
from astra.training.summary import Summary, read_finished, read_summary

__all__ = ["CONTROL_FOLDER", "ensure_trained", "finetune", "train"]

CONTROL_FOLDER = "control"


def finetune(recipe: Recipe, out: Path, settings: Settings, report: Callable[[str], Report]) -> dict[str, Summary]:
    """Train the control, if there is a method, and then the recipe; `report` makes the reporter of a named training.

    A control that is already there and belongs to this recipe is kept.
    """
    summaries = {}
    if recipe.method is not None:
        folder = out / CONTROL_FOLDER
        summaries["control"] = ensure_trained(recipe.control, folder, settings, partial(report, "control"))
        begun = (out / STATE_FILE).exists() or read_summary(out) is not None
        settings = replace(settings, resume=settings.resume and begun)
    name = "model" if recipe.method is None else recipe.method.name
    summaries[name] = train(recipe, out, settings, report(name))
    return summaries


def ensure_trained(recipe: Recipe, out: Path, settings: Settings, report: Callable[[], Report]) -> Summary:
    """Return what the training in `out` came to, if it is finished and of this recipe; else carry it out as `train`.

    One that was begun is gone on with where `settings` say so; there need not be one. `report` makes the reporter.
    """
    done = read_finished(out, recipe)
    if done is not None:
        return done
    return train(recipe, out, replace(settings, resume=settings.resume and (out / STATE_FILE).exists()), report())


def train(recipe: Recipe, out: Path, settings: Settings, report: Report) -> Summary:
    """Carry out one training in the folder `out`; the state of an unfinished one is there too.

    Raises:
        ConfigError: The recipe does not fit its data, `out` holds something else, or there is nothing to resume.
        AstraError: The loss is no longer a number.
    """
    if settings.resume and not (out / STATE_FILE).exists() and (done := read_finished(out, recipe)) is not None:
        return done
    _check_torch_device(settings.torch_device)
    found = read_state(out) if settings.resume else None
    if found is None:
        _make_folder(out)
    elif found[0].recipe_digest != recipe.digest:
        raise ConfigError([f"{out}: recipe must be the one that was begun, got another; train without --resume"])
    training = Training(recipe, out, settings)
    if found is not None:
        training.restore(*found)
    return training.run(report)


def _check_torch_device(name: str) -> None:
    known = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if name not in known:
        rule = f"one of {', '.join(known)} on this machine"
        raise ConfigError(
            [f"train: --torch-device must be {rule}, got {name!r}; choose it, or repair the GPU's driver"]
        )


def _make_folder(out: Path) -> None:
    """Make an empty folder, or take one that holds an earlier training."""
    known = {"config.json", "model.safetensors", "summary.json", STATE_FILE, "log.csv"}
    try:
        out.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in out.iterdir()} - {CONTROL_FOLDER}
    except OSError as error:
        raise ConfigError([f"--out: folder must be writable, got {str(out)!r} ({error}); name another"]) from error
    if names and not names & known:
        raise ConfigError([f"--out: folder must be empty or of an earlier training, got {str(out)!r}; name another"])
    for name in known & names:
        (out / name).unlink()
