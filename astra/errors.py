"""What can go wrong in `astra`, as one tree.

    AstraError                  exit code 1: the run failed
    ├── ConfigError             exit code 2: a config, file or argument is wrong; holds every fault found
    ├── TransportError          a message could not be sent or read
    │   ├── PeerTimeoutError    a peer did not deliver in time; names the peer, request, layer and phase
    │   ├── PeerLostError       a peer died, stands still or is cut off; names it, and who waited for what
    │   └── RecallError         rank 0 calls all together again: who leads the rank's life catches it
    └── WireError               bytes that do not decode to what they claim to be

Messages read `<where>: <field> must be <rule>, got <value!r>; <what to do>`.
"""

from collections.abc import Iterable, Sequence

__all__ = [
    "AstraError",
    "ConfigError",
    "PeerLostError",
    "PeerTimeoutError",
    "RecallError",
    "TransportError",
    "WireError",
]


class AstraError(Exception):
    """Any failure that `astra` reports in its own words."""

    exit_code = 1


class ConfigError(AstraError):
    """Bad input; `faults` lists every fault, one line each."""

    exit_code = 2

    def __init__(self, faults: Sequence[str]):
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class TransportError(AstraError):
    """A message could not be sent or read."""


class PeerTimeoutError(TransportError):
    """A peer did not deliver within its deadline; `silent` are the ranks that could not be reached at all, if any."""

    def __init__(self, message: str, silent: Iterable[int] = ()):
        super().__init__(message)
        self.silent = frozenset(silent)


class PeerLostError(TransportError):
    """A peer died, stands still or is cut off, and nobody goes on without it."""


class RecallError(TransportError):
    """A peer was lost or has come back: leave what you are doing and wait for the next epoch."""


class WireError(AstraError):
    """Bytes that do not decode to what they claim to be."""
