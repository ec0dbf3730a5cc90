"""What can be wrong with `model` in a config: fields that do not go together, and a checkpoint of another shape.

Reads a checkpoint's `config.json` if the folder is there. Loads no weights and no torch.
"""

from pathlib import Path

from astra.config import ModelConfig
from astra.errors import ConfigError
from astra.faults import fault
from astra.presets import PRESETS, sizes_of
from astra.stored_model import SIZE_KEYS, StoredModel

__all__ = ["CHECKPOINT_FILES", "missing_files", "model_faults", "planning_faults", "size_faults"]

CHECKPOINT_FILES = ("config.json", "model.safetensors")

_NAMES = {"vit": "ViT", "bert": "BERT", "gpt2": "GPT-2", "llama": "Llama"}


def model_faults(where: str, model: ModelConfig) -> list[str]:
    """List everything that is wrong with `model`, of which each field alone is right."""
    if found := size_faults(where, model):
        return found
    found = _text_faults(where, model) if model.is_text else _image_faults(where, model)
    if model.num_labels is not None and model.family in ("gpt2", "llama"):
        rule, advice = "left out for a language model", "its outputs are its vocabulary"
        found.append(fault(where, ("model", "num_labels"), rule, model.num_labels, advice))
    if (stored := model.read_stored()) is not None:
        found += _stored_faults(where, model, stored)
    return found


def size_faults(where: str, model: ModelConfig) -> list[str]:
    """List what keeps the sizes of `model` from being known; without any, `model.preset` may be asked."""
    known, folder = sizes_of(model.family), model.folder
    if model.size is not None and model.size not in known:
        rule, advice = f"one of {', '.join(known)} where family is {model.family!r}", "choose one of them"
        return [fault(where, ("model", "size"), rule, model.size, advice)]
    if folder is None and model.size is None:
        advice = "add the key 'size', or read it from a checkpoint's folder"
        return [f"{where}: model.size must be given, got nothing; {advice}"]
    if folder is None:
        return []  # no checkpoint, or one on a hub, whose files are checked when they have been fetched
    if missing := missing_files(folder):
        rule, advice = "a folder with config.json and model.safetensors", f"missing: {', '.join(missing)}"
        return [fault(where, ("model", "checkpoint"), rule, str(folder), advice)]
    try:
        model.read_stored()
    except ConfigError as error:
        return list(error.faults)
    return []


def planning_faults(where: str, model: ModelConfig) -> list[str]:
    """Refuse a shape that can be planned with and not run."""
    if model.preset.runnable:
        return []
    rule = f"one of {', '.join(sizes_of(model.family, runnable_only=True))} to be run"
    advice = f"{model.size} only serves to predict traffic"
    return [fault(where, ("model", "size"), rule, model.size, advice)]


def missing_files(folder: Path) -> list[str]:
    """Name what a checkpoint's folder lacks."""
    return [name for name in CHECKPOINT_FILES if not (folder / name).is_file()]


def _image_faults(where: str, model: ModelConfig) -> list[str]:
    found = []
    if model.num_tokens is not None:
        rule, advice = "left out for ViT", "image_size decides how many tokens there are"
        found.append(fault(where, ("model", "num_tokens"), rule, model.num_tokens, advice))
    if model.image_size is None and model.folder is None:
        return [*found, _absent(where, "image_size")]
    patch = model.preset.patch_size
    if model.side % patch:
        nearest = max(1, round(model.side / patch)) * patch
        rule = f"a multiple of the patch size {patch}"
        found.append(fault(where, ("model", "image_size"), rule, model.side, f"the nearest is {nearest}"))
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


def _stored_faults(where: str, model: ModelConfig, stored: StoredModel) -> list[str]:
    """Compare a checkpoint with what the config says of it."""
    found = []
    if model.size is not None:
        keys, preset = SIZE_KEYS[model.family], PRESETS[model.family][model.size]
        fields = [field for field in keys if field != "positions"]  # which bound a length, and may be more or fewer
        given = {keys[field]: getattr(stored.preset, field) for field in fields}
        asked = {keys[field]: getattr(preset, field) for field in fields}
        if given != asked:
            advice = f"size {model.size!r} has {asked}; leave size out to take the checkpoint's"
            found.append(fault(where, ("model", "checkpoint"), f"a checkpoint of size {model.size!r}", given, advice))
    if stored.num_labels is not None and model.num_labels not in (None, stored.num_labels):
        rule = f"that of the checkpoint, {stored.num_labels}"
        found.append(fault(where, ("model", "num_labels"), rule, model.num_labels, "leave it out"))
    if stored.max_tokens is not None and model.num_tokens is not None:
        longest = stored.max_tokens - (1 if model.family == "bert" else 0)
        if model.num_tokens > longest:
            rule = f"at most {longest} for this checkpoint"
            found.append(fault(where, ("model", "num_tokens"), rule, model.num_tokens, "use shorter texts"))
    return found
