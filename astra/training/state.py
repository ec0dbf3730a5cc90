"""The state of an unfinished training in one file, without pickle.

    parameters, moments of the optimiser, buffers of the quantisers --safetensors--> state.safetensors
    step, best so far, and the recipe's digest ---------------------its metadata--^

One file is written beside and renamed, so that a kill leaves the earlier state or the new one. Nothing of a random
generator is kept: everything random follows from the recipe's seed and the step.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from astra.errors import ConfigError

__all__ = ["STATE_FILE", "Progress", "read_state", "restore", "write_state"]

STATE_FILE = "state.safetensors"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps for each parameter."""


@dataclass(frozen=True)
class Progress:
    """How far a training has come."""

    recipe_digest: str
    step: int = 0
    """Steps done."""
    best: float | None = None
    """Best validation metric so far."""
    best_step: int = 0
    looks_without_gain: int = 0


def write_state(folder: Path, progress: Progress, parts: Mapping[str, nn.Module], optimiser: Optimizer) -> None:
    """Replace the state in `folder`."""
    tensors = {
        f"{part}.{name}": value.detach().cpu().contiguous().clone()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
    for number, moments in enumerate(_per_parameter(optimiser)):
        for name, value in moments.items():
            tensors[f"optimiser.{number}.{name}"] = value.detach().cpu().contiguous().clone()
    scratch = folder / f".{STATE_FILE}"
    scratch.write_bytes(save(tensors, metadata={"progress": json.dumps(asdict(progress))}))
    scratch.rename(folder / STATE_FILE)


def read_state(folder: Path) -> tuple[Progress, dict[str, Tensor]]:
    """Read what `write_state` wrote.

    Raises:
        ConfigError: There is no state, or the file is damaged.
    """
    path = folder / STATE_FILE
    try:
        with safe_open(path, framework="pt") as file:
            progress = Progress(**json.loads((file.metadata() or {})["progress"]))
            return progress, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            [f"{path}: state must be a whole file of an unfinished training, got {error!r}; train without --resume"]
        ) from error


def restore(tensors: Mapping[str, Tensor], parts: Mapping[str, nn.Module], optimiser: Optimizer) -> None:
    """Put a state's tensors back into modules and optimiser."""
    for part, module in parts.items():
        prefix = f"{part}."
        module.load_state_dict({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
    state = optimiser.state_dict()
    numbers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("optimiser.")})
    state["state"] = {n: {name: tensors[f"optimiser.{n}.{name}"] for name in _MOMENTS} for n in numbers}
    optimiser.load_state_dict(state)


def _per_parameter(optimiser: Optimizer) -> list[dict[str, Tensor]]:
    """Return the moments in the order of the optimiser's own numbering."""
    kept = optimiser.state_dict()["state"]
    return [{name: torch.as_tensor(kept[number][name]) for name in _MOMENTS} for number in sorted(kept)]
