"""llama2.c's tokenizer file as the `tokenizers` library reads it.

    IN_tok.bin   int32 longest token; per token: float32 score, int32 length, bytes
    tokens       0 to 2 <unk>, <s>, </s>; 3 to 258 the bytes <0x00> to <0xFF>; then text, with spaces as they are

Source: file format of Karpathy's llama2.c (tokenizer.py) and how its run.c encodes; tokens come from SentencePiece.
"""

import json
import struct
from pathlib import Path
from typing import Any

from astra.errors import ConfigError

__all__ = ["read_bytes", "read_tokens", "tokenizer_json"]

Tokens = list[tuple[str, float]]

_FIRST = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)))
_NUM_SPECIAL = 3
_SPACE = "▁"
"""What SentencePiece writes for a space."""


def read_tokens(path: Path, vocabulary: int) -> Tokens:
    """Read text and score of each token of a model with `vocabulary` tokens; the text has `▁` for spaces.

    Raises:
        ConfigError: The file cannot be read, is damaged, or belongs to another model.
    """
    data, found, offset = read_bytes(path), Tokens(), 4
    try:
        while offset < len(data):
            score, length = struct.unpack_from("<fi", data, offset)
            piece = data[offset + 8 : offset + 8 + length]
            if length < 0 or len(piece) < length:
                raise ValueError(f"token {len(found)} is cut short")
            found.append((piece.decode("utf-8").replace(" ", _SPACE), score))
            offset += 8 + length
    except (struct.error, ValueError) as error:
        raise ConfigError([f"{path}: file must be a whole llama2.c tokenizer, got {error}; copy it again"]) from error
    if len(found) != vocabulary:
        rule = f"the model's {vocabulary} tokens"
        raise ConfigError([f"{path}: file must hold {rule}, got {len(found)}; give the tokenizer of this model"])
    tokens = [(text.strip() if index < _NUM_SPECIAL else text, score) for index, (text, score) in enumerate(found)]
    names = [text for text, _ in tokens]
    if tuple(names[: len(_FIRST)]) != _FIRST or len(set(names)) < len(names):
        rule = "different tokens, of which the first are <unk>, <s>, </s> and the bytes"
        raise ConfigError([f"{path}: file must hold {rule}, got {names[:4]}; give a tokenizer made by SentencePiece"])
    return tokens


def tokenizer_json(tokens: Tokens) -> str:
    """Describe the tokenizer.

    llama2.c puts a space in front of a text, begins with its characters (or bytes, for those without a token), and
    joins again and again the two neighbours whose sum is the token with the best score.
    """
    first = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text, second = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    before = [{"type": "Prepend", "prepend": _SPACE}, _replace(" ", _SPACE)]
    after = [_replace(_SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    unpad = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    described: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(index, name) for index, name in enumerate(_FIRST[:_NUM_SPECIAL])],
        "normalizer": {"type": "Sequence", "normalizers": before},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, text],
            "pair": [first, text, second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [*after, unpad]},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {text: index for index, (text, _) in enumerate(tokens)},
            "merges": _merges(tokens),
        },
    }
    return json.dumps(described, ensure_ascii=False)


def read_bytes(path: Path) -> bytes:
    """Read a file, or raise ConfigError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}: file must be readable, got {error}; check the path"]) from error


def _merges(tokens: Tokens) -> list[list[str]]:
    """Return all pairs of tokens whose sum is a token, in the order in which they are to be joined: best score first.

    The library joins by the rank of the pair and not by the score of the sum; so pairs with one sum follow each other.
    """
    known = {text for text, _ in tokens}
    joined = sorted(tokens[len(_FIRST) :], key=lambda token: -token[1])
    cuts = ((text[:cut], text[cut:]) for text, _ in joined for cut in range(1, len(text)))
    return [[left, right] for left, right in cuts if left in known and right in known]


def _replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _special(index: int, name: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": name, "special": True, **flags}
