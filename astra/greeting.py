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

    @classmethod
    def of(cls, cpus: float | None, inputs: Array | None) -> "Greeting":
        """Describe a rank; where nobody said how many cores it has, those it may run on count."""
        digest = None if inputs is None else hashlib.sha256(inputs.tobytes()).hexdigest()
        return cls(float(len(os.sched_getaffinity(0))) if cpus is None else cpus, digest)


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
    _check_inputs(greetings)
    return greetings


def _check_inputs(greetings: Sequence[Greeting]) -> None:
    digests = {rank: each.inputs for rank, each in enumerate(greetings) if each.inputs is not None}
    others = [rank for rank, digest in digests.items() if digest != greetings[0].inputs]
    if others:
        raise ConfigError(
            [
                f"config: input must be the same on every rank, got others than rank 0's on ranks {others}; use the "
                "same files and the same Python everywhere, or placement: terminal"
            ]
        )
