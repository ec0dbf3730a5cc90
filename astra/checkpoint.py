"""Where the files of a checkpoint are: a local folder, or what a hub gave. Reads no weights."""

import hashlib
from pathlib import Path

from astra.errors import ConfigError
from astra.model_faults import CHECKPOINT_FILES
from astra.stored_model import is_hub_name

__all__ = ["TOKENIZER_FILE", "checkpoint_digest", "checkpoint_folder"]

TOKENIZER_FILE = "tokenizer.json"


def checkpoint_folder(checkpoint: str) -> Path:
    """Return the folder of a checkpoint; one that is named as on a hub is fetched, or found where it was kept.

    Raises:
        ConfigError: The hub cannot be reached and nothing was kept, or it has no such model.
    """
    if not is_hub_name(checkpoint):
        return Path(checkpoint)
    from huggingface_hub import snapshot_download  # only needed here, and slow to import
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(checkpoint, allow_patterns=[*CHECKPOINT_FILES, TOKENIZER_FILE]))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            [
                f"config: model.checkpoint must be a folder, or a model on a hub that can be reached, "
                f"got {checkpoint!r} ({reason}); fetch it elsewhere and name its folder"
            ]
        ) from error


def checkpoint_digest(checkpoint: str) -> str:
    """Hash a checkpoint's content, so that its place does not matter and a change in place does.

    Raises:
        ConfigError: A file cannot be read.
    """
    folder = checkpoint_folder(checkpoint)
    digests = []
    for name in CHECKPOINT_FILES:
        try:
            with (folder / name).open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise ConfigError(
                [f"{folder / name}: file must be readable, got {error}; name a folder saved by save_pretrained"]
            ) from error
    return " ".join(digests)
