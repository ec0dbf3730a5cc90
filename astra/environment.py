"""Who this process is among its peers, from the environment variables that `torch.distributed` programs read too.

    RANK WORLD_SIZE MASTER_ADDR MASTER_PORT   required
    OMP_NUM_THREADS TESTBED_OUT TESTBED_CPUS TESTBED_DEVICE CONTROL_ENDPOINT CURVE_KEYS   optional

Reads variables and checks them; reaches nobody.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from astra.errors import ConfigError

__all__ = ["DEFAULT_OUT", "Environment"]

DEFAULT_OUT = "astra-results"
MAX_RANKS = 255
"""A frame's header has one byte for its sender."""


@dataclass(frozen=True)
class Environment:
    """One rank's place in the world."""

    rank: int
    world_size: int
    master_addr: str
    """Address of rank 0 on the data network."""
    master_port: int
    out: Path
    """Folder for what the run leaves behind."""
    num_threads: int | None = None
    """Threads for torch, or None to leave torch's own choice."""
    cpus: float | None = None
    """Cores that this device may use, or a share of one; None where nobody said."""
    device: str = ""
    """What the others may call this device in messages."""
    control_endpoint: str | None = None
    """Where rank 0 listens for who still takes part, beside the data network; None for on it, at `master_port`."""
    curve_keys: Path | None = None
    """File with this rank's keys (see `transport.keys`); None for connections in plain text."""

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> "Environment":
        """Take the values from `variables`. Raises ConfigError with every variable that is missing or wrong."""
        faults: list[str] = []

        def number(name: str, rule: str, allowed: Callable[[int], bool]) -> int:
            text = variables.get(name)
            if text is not None and text.isascii() and text.isdigit() and allowed(int(text)):
                return int(text)
            faults.append(_fault(name, rule, text))
            return 0

        world_size = number("WORLD_SIZE", f"a number from 1 to {MAX_RANKS}", lambda value: 1 <= value <= MAX_RANKS)
        highest = str(world_size - 1) if world_size else "WORLD_SIZE - 1"
        rank = number("RANK", f"a number from 0 to {highest}", lambda value: not world_size or value < world_size)
        master_port = number("MASTER_PORT", "a port from 1 to 65535", lambda value: 1 <= value <= 65535)
        master_addr = variables.get("MASTER_ADDR", "")
        if not master_addr:
            faults.append(_fault("MASTER_ADDR", "the address of rank 0", variables.get("MASTER_ADDR")))
        threads = None
        if variables.get("OMP_NUM_THREADS"):
            threads = number("OMP_NUM_THREADS", "a number of at least 1", lambda value: value >= 1)
        cpus = None
        if text := variables.get("TESTBED_CPUS"):
            cpus = _positive(text)
            if cpus is None:
                faults.append(_fault("TESTBED_CPUS", "a number greater than 0", text))
        if faults:
            raise ConfigError(faults)
        out = Path(variables.get("TESTBED_OUT") or DEFAULT_OUT)
        device, control = variables.get("TESTBED_DEVICE", ""), variables.get("CONTROL_ENDPOINT") or None
        keys = Path(variables["CURVE_KEYS"]) if variables.get("CURVE_KEYS") else None
        return cls(rank, world_size, master_addr, master_port, out, threads, cpus, device, control, keys)


def _positive(text: str) -> float | None:
    """Read a finite number above 0; None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def _fault(name: str, rule: str, text: str | None) -> str:
    shown = "nothing" if text is None else repr(text)
    advice = "`testbed run` and `torchrun` set it; by hand, set it for every process"
    return f"environment: {name} must be {rule}, got {shown}; {advice}"
