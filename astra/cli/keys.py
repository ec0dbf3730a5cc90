"""`astra keys`: make the key files of a run by hand."""

from pathlib import Path
from typing import Annotated

import typer

from astra.cli.terminal import failures_reported, say
from astra.environment import MAX_RANKS
from astra.errors import ConfigError

__all__ = ["keys"]


def keys(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the key files; made if needed.")],
    world_size: Annotated[int, typer.Option("--world-size", min=2, max=MAX_RANKS, help="Ranks of the run.")],
) -> None:
    """Make a key file for every rank: bring each to its device, and name it there in CURVE_KEYS."""
    with failures_reported():
        from astra.transport.keys import make_keys

        folder.mkdir(parents=True, exist_ok=True)
        for rank, each in enumerate(make_keys(world_size)):
            path = folder / f"rank{rank}.json"
            try:
                each.write(path)
            except FileExistsError as error:
                fault = f"{path}: must not be there yet, got a file; name another folder, or remove the old set"
                raise ConfigError([fault]) from error
        say(f"{folder}: {world_size} key files; CURVE_KEYS names each rank's own, which nobody else should see")
