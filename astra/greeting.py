"""What ranks tell one another once they are connected: their CPU share, and which inputs they hold.

    every rank ──its greeting──► rank 0 ──all greetings──► every rank

So each rank cuts the work alike under `partition: cpus`, and ranks that would answer about different inputs are found
out before they do. Needs no agreement beforehand; happens once.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from astra.collectives import Collectives
from astra.errors import ConfigError
from astra.placement import Array
from astra.transport import Tag

__all__ = ["Greeting", "exchange"]

_COLLECT, _SHARE = Tag(0, 0, "hello"), Tag(0, 0, "greetings")


@dataclass(frozen=True)
class Greeting:
    """What one rank says of itself."""

    cpus: float
    """Cores that it may use, or a share of one."""
    inputs: str | None
    """Digest of the requests' inputs; None where it holds none."""
    examples: str | None = None
    """Digest of the labelled set's inputs; None without one."""

    @classmethod
    def of(cls, cpus: float | None, inputs: Array | None, examples: Array | None = None) -> "Greeting":
        """Describe a rank; where nobody said how many cores it has, those it may run on count."""
        cores = float(len(os.sched_getaffinity(0))) if cpus is None else cpus
        return cls(cores, _digest(inputs), _digest(examples))


def exchange(collectives: Collectives, own: Greeting) -> list[Greeting]:
    """Return all ranks' greetings, in order of rank.

    Raises:
        PeerTimeoutError: A rank did not answer.
        ConfigError: Ranks hold different inputs; the same on every rank.
    """
    payloads = collectives.gather(_COLLECT, json.dumps(asdict(own)).encode())
    together = None
    if payloads is not None:
        together = json.dumps([asdict(own), *(json.loads(bytes(each)) for each in payloads.values())]).encode()
    shared = json.loads(bytes(collectives.broadcast(_SHARE, together)))
    greetings = [Greeting(**each) for each in shared]
    found = _differing("input", [each.inputs for each in greetings], ", or placement: terminal")
    found += _differing("data", [each.examples for each in greetings], "")
    if found:
        raise ConfigError(found)
    return greetings


def _digest(inputs: Array | None) -> str | None:
    return None if inputs is None else hashlib.sha256(inputs.tobytes()).hexdigest()


def _differing(what: str, digests: Sequence[str | None], way_out: str) -> list[str]:
    """Say which ranks hold something else than rank 0; those that hold nothing are sent it."""
    others = [rank for rank, digest in enumerate(digests) if digest not in (None, digests[0])]
    if not others:
        return []
    return [
        f"config: {what} must be the same on every rank, got others than rank 0's on ranks {others}; use the same "
        f"files and the same Python everywhere{way_out}"
    ]
