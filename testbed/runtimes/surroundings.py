"""What a program finds around it on a device, apart from links and limits: its user, its folder, and the cache.

A runtime decides: a network namespace shares the machine's files and users, a container has its own.
"""

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CACHE_VARIABLE", "Identity", "Surroundings", "cache_folder"]

CACHE_VARIABLE = "ASTRA_CACHE"
"""Names the folder where a workload's `prepare` keeps what its devices need later, such as codebooks."""


@dataclass(frozen=True)
class Identity:
    """The user that programs run as; None keeps the agents' own."""

    uid: int | None = None
    gid: int | None = None
    home: str | None = None

    def environment(self) -> dict[str, str]:
        """Return what the user's programs need in their environment."""
        return {} if self.home is None else {"HOME": self.home}


@dataclass(frozen=True)
class Surroundings:
    """A program's user and the folder it starts in."""

    identity: Identity
    folder: Path


def cache_folder() -> Path:
    """Return this machine's folder for what `prepare` keeps: `$ASTRA_CACHE`, or ours in the XDG cache folder."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "astra-testbed"
