"""Text to token ids and back: the tokenizer of the checkpoint, or bytes where there is none.

Knows nothing of models but their checkpoint's folder. The byte tokenizer takes the ids 0 to 255 of any vocabulary, in
which seeded weights see as much sense as in any other; ids above them have no text.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from astra.checkpoint import TOKENIZER_FILE, checkpoint_folder
from astra.config import ModelConfig
from astra.errors import ConfigError

__all__ = ["ByteTokenizer", "Tokenizer", "load_tokenizer"]

NUM_BYTES = 256


class Tokenizer(Protocol):
    """Turns text into token ids and back."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without special tokens."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`."""


class ByteTokenizer:
    """One token a byte of UTF-8."""

    def encode(self, text: str) -> list[int]:
        """Return the bytes."""
        return list(text.encode("utf-8"))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text; an id that is no byte is shown as its number in angle brackets."""
        shown = b"".join(bytes([each]) if each < NUM_BYTES else f"<{each}>".encode() for each in ids)
        return shown.decode("utf-8", errors="replace")


class _CheckpointTokenizer:
    """The tokenizer that a checkpoint's `tokenizer.json` describes."""

    def __init__(self, path: Path):
        from tokenizers import Tokenizer as FastTokenizer  # only needed here

        try:
            self._tokenizer = FastTokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ConfigError([f"{path}: file must be a tokenizer, got {error}; save it again or remove it"]) from error

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`."""
        return str(self._tokenizer.decode(list(ids)))


def load_tokenizer(model: ModelConfig) -> Tokenizer:
    """Return the tokenizer of the model's checkpoint, or bytes where it has none.

    Raises:
        ConfigError: The checkpoint's tokenizer cannot be read.
    """
    if model.checkpoint is not None:
        path = checkpoint_folder(model.checkpoint) / TOKENIZER_FILE
        if path.is_file():
            return _CheckpointTokenizer(path)
    return ByteTokenizer()
