"""Text to token ids and back: the tokenizer of the checkpoint, one built from published vocabularies, or bytes.

    checkpoint/tokenizer.json                                    as it is
    tokenizer.json                        named by the user      as it is
    encoder.json + vocab.bpe, or the same as vocab.json + merges.txt     GPT-2's byte-pair encoding
    vocab.txt                                                    BERT's WordPiece

Knows nothing of models but their family and their checkpoint's folder. The byte tokenizer takes the ids 0 to 255 of any
vocabulary, in which seeded weights see as much sense as in any other, and two more; ids above them have no text.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from astra.checkpoint import TOKENIZER_FILE, checkpoint_folder
from astra.config import ModelConfig
from astra.errors import ConfigError
from astra.presets import Family

__all__ = ["ByteTokenizer", "Tokenizer", "load_tokenizer", "open_tokenizer"]

NUM_BYTES = 256
_FORMATS: dict[str, tuple[str, ...]] = {
    "tokenizer": (TOKENIZER_FILE,),
    "bpe": ("encoder.json", "vocab.bpe"),
    "merges": ("vocab.json", "merges.txt"),
    "wordpiece": ("vocab.txt",),
}
"""How the files of each format are called, or how their names end (`gpt2_encoder.json`)."""
_PADS = ("[PAD]", "<pad>", "<|endoftext|>", "<|end_of_text|>", "</s>", "<unk>")
_SEPARATORS = ("[SEP]", "</s>", "<|endoftext|>")


class Tokenizer(Protocol):
    """Turns text into token ids and back."""

    @property
    def num_ids(self) -> int:
        """All ids are below this."""

    @property
    def pad_id(self) -> int:
        """Fills up short inputs."""

    @property
    def separator_id(self) -> int:
        """Ends each part of an input of one or two sentences."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without special tokens."""

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`."""

    def to_json(self) -> str | None:
        """Return what `tokenizer.json` beside a trained checkpoint must hold; None for bytes, which need none."""


class ByteTokenizer:
    """One token a byte of UTF-8; pads and separators are the two ids after them."""

    num_ids = NUM_BYTES + 2
    pad_id = NUM_BYTES
    separator_id = NUM_BYTES + 1

    def encode(self, text: str) -> list[int]:
        """Return the bytes."""
        return list(text.encode("utf-8"))

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the bytes of each text."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text; an id that is no byte is shown as its number in angle brackets."""
        shown = b"".join(bytes([each]) if each < NUM_BYTES else f"<{each}>".encode() for each in ids)
        return shown.decode("utf-8", errors="replace")

    def to_json(self) -> None:
        """Return nothing: without a `tokenizer.json`, a checkpoint reads bytes."""


class _FastTokenizer:
    """A tokenizer of the `tokenizers` library."""

    def __init__(self, fast: Any, where: Path):
        fast.no_truncation()  # some are saved with a length of their own
        fast.no_padding()
        self._fast = fast
        self._where = where
        self.num_ids: int = fast.get_vocab_size()
        self.pad_id = next((each for each in map(fast.token_to_id, _PADS) if each is not None), 0)

    @property
    def separator_id(self) -> int:
        """Return the id of [SEP], or of the end of a text where there is no such token."""
        for name in _SEPARATORS:
            if (found := self._fast.token_to_id(name)) is not None:
                return int(found)
        rule = f"a tokenizer with one of {', '.join(_SEPARATORS)}"
        raise ConfigError([f"{self._where}: file must be {rule}, got none of them; name another tokenizer"])

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without special tokens."""
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, on all cores."""
        return [list(each.ids) for each in self._fast.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`."""
        return str(self._fast.decode(list(ids)))

    def to_json(self) -> str:
        """Return the library's own description."""
        return str(self._fast.to_str())


def load_tokenizer(model: ModelConfig, given: str | None = None) -> Tokenizer:
    """Return the tokenizer of the model's checkpoint; else the `given` one; bytes where there is neither.

    Raises:
        ConfigError: The tokenizer cannot be read, or has more ids than the model's vocabulary.
    """
    tokenizer: Tokenizer = ByteTokenizer()
    named = "bytes"
    if model.checkpoint is not None and (path := checkpoint_folder(model.checkpoint) / TOKENIZER_FILE).is_file():
        tokenizer, named = _read(path), str(path)
    elif given is not None:
        tokenizer, named = open_tokenizer(Path(given), model.family), given
    if tokenizer.num_ids > model.preset.vocabulary > 0 and given is not None:
        rule = f"a tokenizer of at most the model's {model.preset.vocabulary} ids"
        advice = "choose a model with a larger vocabulary, or another tokenizer"
        raise ConfigError([f"{named}: file must be {rule}, got {tokenizer.num_ids}; {advice}"])
    return tokenizer


def open_tokenizer(path: Path, family: Family) -> Tokenizer:
    """Read a tokenizer from a file, or from a folder that may hold one of each format; `family` chooses among them.

    Raises:
        ConfigError: There is no tokenizer, or it is damaged.
    """
    kinds = ("tokenizer", "wordpiece") if family == "bert" else ("tokenizer", "bpe", "merges")
    for kind in kinds:
        if files := _files(path, _FORMATS[kind]):
            return _build(kind, files)
    wanted = " or ".join(" with ".join(_FORMATS[kind]) for kind in kinds)
    raise ConfigError(
        [f"data: tokenizer must be a file or folder with {wanted} for {family}, got {str(path)!r}; name another"]
    )


def _files(path: Path, names: Sequence[str]) -> list[Path]:
    """Return the files of a format, told by how their names end, if `path` is one of them or their folder."""
    if path.is_dir():
        starts = [each.name.removesuffix(names[0]) for each in sorted(path.iterdir()) if each.name.endswith(names[0])]
        folder = path
    else:
        starts = [path.name.removesuffix(name) for name in names if path.name.endswith(name)]
        folder = path.parent
    found = [[folder / f"{start}{name}" for name in names] for start in starts]
    whole = [files for files in found if all(file.is_file() for file in files)]
    if len(whole) > 1:
        shown = ", ".join(files[0].name for files in whole)
        raise ConfigError([f"{path}: folder must hold one tokenizer of a kind, got {shown}; name the one to use"])
    return whole[0] if whole else []


def _build(kind: str, files: Sequence[Path]) -> Tokenizer:
    if kind == "tokenizer":
        return _read(files[0])
    try:
        fast = _word_piece(files[0]) if kind == "wordpiece" else _byte_pairs(files[0], files[1])
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError([f"{files[0]}: file must be a vocabulary, got {error}; copy it again"]) from error
    return _FastTokenizer(fast, files[0])


def _read(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`."""
    from tokenizers import Tokenizer as FastTokenizer  # only needed here

    try:
        return _FastTokenizer(FastTokenizer.from_file(str(path)), path)
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError([f"{path}: file must be a tokenizer, got {error}; save it again or remove it"]) from error


def _byte_pairs(vocabulary: Path, merges: Path) -> Any:
    """Build GPT-2's tokenizer. Source: Radford et al., 2019, section 2.2; file formats of its release."""
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    fast = FastTokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    _mark_special(fast, ["<|endoftext|>"])
    return fast


def _word_piece(vocabulary: Path) -> Any:
    """Build BERT's tokenizer, uncased if no word of the vocabulary has a capital. Source: Devlin et al., 1810.04805."""
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    words = vocabulary.read_text(encoding="utf-8").splitlines()
    uncased = not any(word != word.lower() for word in words if not word.startswith("["))
    fast = FastTokenizer(models.WordPiece.from_file(str(vocabulary), unk_token="[UNK]"))  # noqa: S106  (no password)
    fast.normalizer = normalizers.BertNormalizer(lowercase=uncased)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    _mark_special(fast, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return fast


def _mark_special(fast: Any, names: Sequence[str]) -> None:
    """Keep special tokens whole; those that the vocabulary lacks stay out of it."""
    fast.add_special_tokens([name for name in names if fast.token_to_id(name) is not None])
