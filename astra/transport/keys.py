"""Key files: a rank's secret key, and the public keys of all ranks, by which they know one another.

    keys/rank0.json   {"secret": "<rank 0's>", "public": ["<rank 0's>", "<rank 1's>", ...]}    mode 0600
    keys/rank1.json   {"secret": "<rank 1's>", "public": [the same list]}

Keys are those of CURVE (Curve25519), each 40 characters of Z85. A testbed makes a set for every run and says in
CURVE_KEYS where a program's file is; by hand, `astra keys` makes one. Connects to nobody.
"""

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import zmq
from zmq.utils import z85

from astra.errors import ConfigError

__all__ = ["KEY_CHARS", "Keys", "make_keys"]

KEY_CHARS = 40
"""Characters of a key in Z85: 32 bytes."""

_MODE = 0o600


@dataclass(frozen=True)
class Keys:
    """What one rank holds; `public` is in order of ranks."""

    secret: bytes = field(repr=False)
    public: tuple[bytes, ...]

    @classmethod
    def read(cls, path: Path, rank: int, world_size: int) -> Self:
        """Read a rank's key file.

        Raises:
            ConfigError: It is not there, others may read it, or it is not this rank's; every fault is named.
        """
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            fields = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            reason = str(error.strerror) if isinstance(error, OSError) else "no JSON"
            raise ConfigError([_fault("CURVE_KEYS", "a key file that can be read", reason)]) from error
        faults = list[str]()
        if mode & 0o077:
            faults.append(_fault("CURVE_KEYS", "a file that only its owner may read", f"mode {mode:04o}"))
        secret, public = _keys_of(fields)
        if not secret:
            faults.append(_fault("secret", f"a key of {KEY_CHARS} characters", "something else"))
        if len(public) != world_size or len(set(public)) != len(public):
            faults.append(_fault("public", f"{world_size} different keys, one a rank", f"{len(set(public))}"))
        elif secret and zmq.curve_public(secret) != public[rank]:
            faults.append(_fault("secret", f"that of rank {rank}", "another rank's"))
        if faults:
            raise ConfigError(faults)
        return cls(secret, public)

    def write(self, path: Path) -> None:
        """Write a key file that only this user may read. Raises FileExistsError."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
        with os.fdopen(descriptor, "w") as file:
            json.dump({"secret": self.secret.decode(), "public": [key.decode() for key in self.public]}, file)

    def among(self, members: Sequence[int]) -> Self:
        """Return the same keys for fewer ranks, `members`, which are numbered anew in that order."""
        return type(self)(self.secret, tuple(self.public[rank] for rank in members))


def make_keys(world_size: int) -> list[Keys]:
    """Draw a set of keys, in order of ranks."""
    pairs = [zmq.curve_keypair() for _ in range(world_size)]
    public = tuple(public for public, _ in pairs)
    return [Keys(secret, public) for _, secret in pairs]


def _keys_of(fields: Any) -> tuple[bytes, tuple[bytes, ...]]:
    """Take the keys out of a file's fields; what is no key is left out."""
    if not isinstance(fields, dict):
        return b"", ()
    listed = fields.get("public")
    public = [_key(text) for text in listed] if isinstance(listed, list) else []
    return _key(fields.get("secret")), tuple(key for key in public if key)


def _key(text: Any) -> bytes:
    """Return a key, or nothing if the text is none."""
    if not isinstance(text, str) or len(text) != KEY_CHARS or not text.isascii():
        return b""
    try:
        z85.decode(text.encode())
    except (KeyError, ValueError):
        return b""
    return text.encode()


def _fault(field_name: str, rule: str, got: str) -> str:
    return f"key file: {field_name} must be {rule}, got {got}; `astra keys` makes a set, `testbed run` its own"
