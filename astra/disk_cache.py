"""The folder that keeps what takes long to make: fitted codebooks, decoded images. Anything in it can be made again."""

import os
import tempfile
from pathlib import Path

from astra.errors import ConfigError

__all__ = ["cache_root", "check_writable"]


def cache_root() -> Path:
    """Return `$ASTRA_CACHE`, or `astra-testbed` in the XDG cache folder."""
    if named := os.environ.get("ASTRA_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "astra-testbed"


def check_writable(folder: Path) -> None:
    """Find out before the work, not after it, that its result could not be kept.

    Raises:
        ConfigError: The folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            [f"cache: folder must be writable, got {str(folder)!r} ({error.strerror}); set ASTRA_CACHE to another"]
        ) from error
