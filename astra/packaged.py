"""Checkpoints that come with the package: `packaged:digits` in a config stands for the folder they lie in.

    digits         a tiny ViT trained on scikit-learn's digits            recipes/digits.yaml
    digits-astra   the same, fine-tuned for ASTRA, with its codebooks      recipes/digits-astra.yaml

Pure but for looking at which folders there are.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from astra import faults

__all__ = ["PREFIX", "CheckpointName", "packaged_checkpoints"]

PREFIX = "packaged:"
_FOLDER = Path(__file__).parent / "checkpoints"


def packaged_checkpoints() -> list[str]:
    """Return the names that may stand behind the prefix."""
    return sorted(path.name for path in _FOLDER.iterdir() if path.is_dir())


def _resolve(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(PREFIX):
        return value
    name = value.removeprefix(PREFIX)
    if name not in packaged_checkpoints():
        known = [f"{PREFIX}{each}" for each in packaged_checkpoints()]
        raise faults.rule_error(f"one of {', '.join(known)}, a folder or a hub's name", faults.suggestion(value, known))
    return str(_FOLDER / name)


CheckpointName = Annotated[str, BeforeValidator(_resolve), Field(min_length=1)]
"""A folder, `organisation/name` of a hub, or `packaged:` and a name; the last becomes the first."""
