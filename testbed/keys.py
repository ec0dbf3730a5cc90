"""The keys of one run: what controller and agents know one another by, and what programs get for their own sockets.

    make_control_keys ─► controller.json {"secret", "peer"}   agent.json {"secret", "peer"}     one pair for each side
    rank_keys         ─► {"secret", "public": [one a rank]} for every rank                      one pair for each rank

CURVE keys (Curve25519), in 40 characters of Z85 as ZeroMQ writes them. All agents of a run share a pair, since
nameless ones are told apart only by who comes first. Draws, reads and writes; connects to nobody.
docs/security.md says what they are good for.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85

from testbed.errors import InputError, RuntimeFailureError

__all__ = ["AGENT_FILE", "CONTROLLER_FILE", "ControlKeys", "make_control_keys", "rank_keys", "write_private"]

AGENT_FILE, CONTROLLER_FILE = "agent.json", "controller.json"
KEY_CHARS = 40


@dataclass(frozen=True)
class ControlKeys:
    """One side's secret key, and the public key of the other."""

    secret: str = field(repr=False)
    peer: str

    @property
    def public(self) -> bytes:
        """The public key to `secret`."""
        return zmq.curve_public(self.secret.encode())

    def write(self, path: Path) -> None:
        """Write a file that only this user may read; one that is there is replaced as a whole."""
        write_private(path, json.dumps({"secret": self.secret, "peer": self.peer}))

    @classmethod
    def read(cls, path: Path) -> "ControlKeys":
        """Read what `write` wrote. Raises InputError, FileNotFoundError."""
        try:
            fields = json.loads(path.read_bytes())
        except (ValueError, PermissionError) as error:
            raise InputError([_fault(path, f"({type(error).__name__})")]) from error
        if not isinstance(fields, dict) or not (_is_key(fields.get("secret")) and _is_key(fields.get("peer"))):
            raise InputError([_fault(path, "something else")])
        return cls(fields["secret"], fields["peer"])


def make_control_keys() -> tuple[ControlKeys, ControlKeys]:
    """Draw the keys of a run's controller and of its agents."""
    (controller, controller_secret), (agent, agent_secret) = zmq.curve_keypair(), zmq.curve_keypair()
    return (
        ControlKeys(controller_secret.decode(), agent.decode()),
        ControlKeys(agent_secret.decode(), controller.decode()),
    )


def rank_keys(count: int) -> list[str]:
    """Draw the keys of a program's ranks; return each one's key file as JSON."""
    pairs = [zmq.curve_keypair() for _ in range(count)]
    public = [public.decode() for public, _ in pairs]
    return [json.dumps({"secret": secret.decode(), "public": public}) for _, secret in pairs]


def write_private(path: Path, text: str, uid: int | None = None, gid: int | None = None) -> None:
    """Write a file that only its owner may read: this user, or `uid`. Raises RuntimeFailureError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            if uid is not None:
                os.fchown(descriptor, uid, -1 if gid is None else gid)
        partial.rename(path)
    except OSError as error:
        raise RuntimeFailureError(f"keys: {path} must be writable, got {error.strerror}") from error


def _is_key(text: Any) -> bool:
    if not isinstance(text, str) or len(text) != KEY_CHARS or not text.isascii():
        return False
    try:
        z85.decode(text.encode())
    except (KeyError, ValueError):
        return False
    return True


def _fault(path: Path, got: str) -> str:
    return f"{path}: must be a key file as `testbed keys` makes, got {got}; make a new pair"
