"""What can be wrong with `model` in a config: fields that do not go together, and a checkpoint of another shape.

Reads a checkpoint's `config.json` if the folder is there. Loads no weights and no torch.
"""

import json
import re
from pathlib import Path
from typing import Any

from astra import faults
from astra.config import ModelConfig
from astra.faults import fault
from astra.presets import PRESETS, sizes_of

__all__ = ["CHECKPOINT_FILES", "is_hub_name", "missing_files", "model_faults", "planning_faults"]

CHECKPOINT_FILES = ("config.json", "model.safetensors")

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

_STORED_SIZES = {
    "vit": {"hidden_size": "width", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
    "bert": {"hidden_size": "width", "num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
    "gpt2": {"n_embd": "width", "n_head": "num_heads", "n_layer": "num_layers"},
    "llama": {
        "hidden_size": "width",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "num_hidden_layers": "num_layers",
    },
}
"""Keys of a checkpoint's `config.json`, and the fields of `Preset` that they must equal."""

_NAMES = {"vit": "ViT", "bert": "BERT", "gpt2": "GPT-2", "llama": "Llama"}


def model_faults(where: str, model: ModelConfig) -> list[str]:
    """List everything that is wrong with `model`, of which each field alone is right."""
    known = sizes_of(model.family)
    if model.size not in known:
        rule, advice = f"one of {', '.join(known)} where family is {model.family!r}", "choose one of them"
        return [fault(where, ("model", "size"), rule, model.size, advice)]
    found = _text_faults(where, model) if model.is_text else _image_faults(where, model)
    if model.num_labels is not None and model.family in ("gpt2", "llama"):
        rule, advice = "left out for a language model", "its outputs are its vocabulary"
        found.append(fault(where, ("model", "num_labels"), rule, model.num_labels, advice))
    if model.checkpoint is not None:
        found += _checkpoint_faults(where, model, model.checkpoint)
    return found


def planning_faults(where: str, model: ModelConfig) -> list[str]:
    """Refuse a shape that can be planned with and not run."""
    if model.preset.runnable:
        return []
    rule = f"one of {', '.join(sizes_of(model.family, runnable_only=True))} to be run"
    advice = f"{model.size} only serves to predict traffic"
    return [fault(where, ("model", "size"), rule, model.size, advice)]


def is_hub_name(checkpoint: str) -> bool:
    """Say whether a checkpoint is `organisation/name` on a hub; a folder of that name goes first."""
    return _HUB_NAME.fullmatch(checkpoint) is not None and not Path(checkpoint).is_dir()


def missing_files(folder: Path) -> list[str]:
    """Name what a checkpoint's folder lacks."""
    return [name for name in CHECKPOINT_FILES if not (folder / name).is_file()]


def _image_faults(where: str, model: ModelConfig) -> list[str]:
    found = []
    if model.num_tokens is not None:
        rule, advice = "left out for ViT", "image_size decides how many tokens there are"
        found.append(fault(where, ("model", "num_tokens"), rule, model.num_tokens, advice))
    if model.image_size is None:
        return [*found, _absent(where, "image_size")]
    patch = model.preset.patch_size
    if model.image_size % patch:
        nearest = max(1, round(model.image_size / patch)) * patch
        rule = f"a multiple of the patch size {patch}"
        found.append(fault(where, ("model", "image_size"), rule, model.image_size, f"the nearest is {nearest}"))
    return found


def _text_faults(where: str, model: ModelConfig) -> list[str]:
    found = []
    if model.image_size is not None:
        rule, advice = f"left out for {_NAMES[model.family]}", "num_tokens says how long a text is"
        found.append(fault(where, ("model", "image_size"), rule, model.image_size, advice))
    if model.num_tokens is None:
        found.append(_absent(where, "num_tokens"))
    return found


def _absent(where: str, field: str) -> str:
    return f"{where}: model.{field} must be given, got nothing; add the key {field!r}"


def _checkpoint_faults(where: str, model: ModelConfig, checkpoint: str) -> list[str]:
    """Compare a checkpoint's own `config.json` with what the file asks for."""
    path: faults.Path = ("model", "checkpoint")
    if is_hub_name(checkpoint):
        return []  # its files are checked when they have been fetched
    folder, name = Path(checkpoint), _NAMES[model.family]
    if missing := missing_files(folder):
        rule, advice = "a folder with config.json and model.safetensors", f"missing: {', '.join(missing)}"
        return [fault(where, path, rule, str(folder), advice)]
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        given = {key: stored[key] for key in _asked(model)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        advice = f"its config.json does not describe a {name} ({error!r})"
        return [fault(where, path, f"a {name} checkpoint", str(folder), advice)]
    if given != _asked(model):
        advice = f"size {model.size!r} has {_asked(model)}; choose the size of the checkpoint"
        return [fault(where, path, f"a checkpoint of size {model.size!r}", given, advice)]
    return []


def _asked(model: ModelConfig) -> dict[str, Any]:
    """Return what `config.json` must say for `model`'s preset."""
    preset = PRESETS[model.family][model.size]
    asked = {key: getattr(preset, field) for key, field in _STORED_SIZES[model.family].items()}
    return asked | {"patch_size": preset.patch_size} if model.family == "vit" else asked
