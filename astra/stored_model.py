"""What a checkpoint's `config.json` says of a model: its sizes, and whether adapters compute its kind.

    folder/config.json --read_stored_model--> StoredModel, or ConfigError with every fault

Reads no weights; pure otherwise, and free of torch. Keys are those of Hugging Face's `save_pretrained`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra.errors import ConfigError
from astra.presets import PRESETS, Family, Preset

__all__ = ["FIXED_ANGLES", "SIZE_KEYS", "StoredModel", "is_hub_name", "read_stored_model"]

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

_ENCODER_KEYS = {
    "width": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "mlp_width": "intermediate_size",
}
SIZE_KEYS: Mapping[str, Mapping[str, str]] = {
    "vit": _ENCODER_KEYS | {"patch_size": "patch_size"},
    "bert": _ENCODER_KEYS | {"vocabulary": "vocab_size", "positions": "max_position_embeddings"},
    "gpt2": {
        "width": "n_embd",
        "num_heads": "n_head",
        "num_layers": "n_layer",
        "mlp_width": "n_inner",
        "vocabulary": "vocab_size",
        "positions": "n_positions",
    },
    "llama": _ENCODER_KEYS | {"num_kv_heads": "num_key_value_heads", "vocabulary": "vocab_size"},
}
"""Fields of `Preset`, and what `config.json` calls them."""

_PLAIN: Mapping[str, Mapping[str, Any]] = {
    "vit": {"num_channels": 3},
    "bert": {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"},
    "gpt2": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    "llama": {},
}
"""What must have this value, or be left out, since adapters compute nothing else. Activations may be any."""

FIXED_ANGLES = ("default", "linear", "llama3", "proportional")
"""Kinds of RoPE whose angles do not depend on the length of the text."""

_DEFAULT_NUM_LABELS = 2
"""What the library leaves out of `config.json`."""


@dataclass(frozen=True)
class StoredModel:
    """The sizes of a checkpoint."""

    preset: Preset
    image_size: int | None
    """Pixels per side that the position embeddings are for; None for text."""
    num_labels: int | None
    """Classes; None for a language model."""
    max_tokens: int | None
    """Tokens of the longest text, class token included; None for images."""


def is_hub_name(checkpoint: str) -> bool:
    """Say whether a checkpoint is `organisation/name` on a hub; a folder of that name goes first."""
    return _HUB_NAME.fullmatch(checkpoint) is not None and not Path(checkpoint).is_dir()


def read_stored_model(folder: Path, family: Family) -> StoredModel:
    """Read the sizes of the checkpoint in `folder`, which is to be of `family`.

    Raises:
        ConfigError: There is no such file, it is of another family, sizes are missing or absurd, or it asks for what
            adapters do not compute.
    """
    path = folder / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError([f"{path}: file must be readable JSON, got {error}; save the model again"]) from error
    if not isinstance(stored, dict):
        raise ConfigError([f"{path}: file must be one mapping, got {stored!r}; save the model again"])
    if faults := _type_faults(path, stored, family) or _size_faults(path, stored, family):
        raise ConfigError(faults)
    if faults := _shape_faults(path, stored, family) + _variant_faults(path, stored, family):
        raise ConfigError(faults)
    language = family in ("gpt2", "llama")
    return StoredModel(
        preset=Preset(**_sizes(stored, family)),
        image_size=stored["image_size"] if family == "vit" else None,
        num_labels=None if language else len(stored.get("id2label") or range(_DEFAULT_NUM_LABELS)),
        max_tokens=stored[_length_key(family)] if family != "vit" else None,
    )


def _type_faults(path: Path, stored: dict[str, Any], family: Family) -> list[str]:
    kind = stored.get("model_type")
    if kind == family:
        return []
    advice = "set model.family to it" if kind in PRESETS else f"known are {', '.join(PRESETS)}"
    return [f"{path}: model_type must be {family!r}, got {kind!r}; {advice}"]


def _size_faults(path: Path, stored: dict[str, Any], family: Family) -> list[str]:
    """Name every size that is not a whole number of at least 1; those that the format may leave out are filled in."""
    further = "image_size" if family == "vit" else _length_key(family)
    asked = _named_sizes(stored, family) | {further: stored.get(further)}
    return [
        f"{path}: {key} must be a whole number of at least 1, got {value!r}; save the model again"
        for key, value in asked.items()
        if not isinstance(value, int) or isinstance(value, bool) or value < 1
    ]


def _shape_faults(path: Path, stored: dict[str, Any], family: Family) -> list[str]:
    """Find sizes that do not go together."""
    preset, keys = Preset(**_sizes(stored, family)), SIZE_KEYS[family]
    found = []
    if preset.width % preset.num_heads:
        rule = f"a divisor of {keys['width']} {preset.width}"
        found.append(f"{path}: {keys['num_heads']} must be {rule}, got {preset.num_heads}; use another model")
    if preset.num_heads % preset.num_kv_heads:
        rule = f"a divisor of {keys['num_heads']} {preset.num_heads}"
        found.append(f"{path}: {keys['num_kv_heads']} must be {rule}, got {preset.num_kv_heads}; use another model")
    head_width = stored.get("head_dim") or preset.width // preset.num_heads
    if family == "llama" and head_width * preset.num_heads != preset.width:
        rule = f"{keys['width']} / {keys['num_heads']} = {preset.width // preset.num_heads}"
        found.append(f"{path}: head_dim must be {rule}, got {head_width}; use a model of which it is")
    return found


def _variant_faults(path: Path, stored: dict[str, Any], family: Family) -> list[str]:
    """Refuse what an adapter would compute otherwise than the library."""
    found = [
        f"{path}: {key} must be {plain!r}, got {stored[key]!r}; use a plain model"
        for key, plain in _PLAIN[family].items()
        if stored.get(key, plain) != plain
    ]
    angles = stored.get("rope_parameters") or stored.get("rope_scaling") or {}
    kind = angles.get("rope_type", angles.get("type", "default"))
    if family == "llama" and kind not in FIXED_ANGLES:
        found.append(
            f"{path}: rope_type must be one of {', '.join(FIXED_ANGLES)}, got {kind!r}; "
            "use a model whose angles do not change with the length of the text"
        )
    return found


def _named_sizes(stored: dict[str, Any], family: Family) -> dict[str, Any]:
    """Return the sizes by the file's keys, with what may be left out."""
    found = {key: stored.get(key) for key in SIZE_KEYS[family].values()}
    if family == "gpt2" and found["n_inner"] is None and isinstance(found["n_embd"], int):
        found["n_inner"] = 4 * found["n_embd"]
    if family == "llama" and found["num_key_value_heads"] is None:
        found["num_key_value_heads"] = found["num_attention_heads"]
    return found


def _sizes(stored: dict[str, Any], family: Family) -> dict[str, Any]:
    """Return the fields of `Preset`."""
    named = _named_sizes(stored, family)
    sizes = {field: named[key] for field, key in SIZE_KEYS[family].items()}
    return {"num_kv_heads": sizes["num_heads"]} | sizes


def _length_key(family: Family) -> str:
    return "n_positions" if family == "gpt2" else "max_position_embeddings"
