"""What a program left under TESTBED_OUT, as messages to the controller.

folder --plain files, 64 MiB in all--> File, File, ... (1 MiB each) ──> controller
       --links, sockets, what is too large--> their names
"""

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from testbed.protocol.from_agents import FILE_CHUNK_BYTES, File

__all__ = ["empty", "send_files"]

LIMIT_BYTES = 64 << 20

Send = Callable[[File], Awaitable[None]]


async def send_files(folder: Path, send: Send) -> tuple[str, ...]:
    """Send what is in a folder; return what was too large or not a plain file."""
    left_out, budget = [], LIMIT_BYTES
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() and not path.is_symlink():
            continue
        if path.is_symlink() or not path.is_file() or path.stat().st_size > budget or not name.isprintable():
            left_out.append(ascii(name)[1:-1])
            continue
        budget -= path.stat().st_size
        try:
            await _send_file(path, name, send)
        except OSError as error:
            left_out.append(f"{name} ({error.strerror})")
    return tuple(left_out)


def empty(folder: Path) -> None:
    """Remove what is in a folder, such as files that have been sent."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


async def _send_file(path: Path, name: str, send: Send) -> None:
    with path.open("rb") as file:
        data = file.read(FILE_CHUNK_BYTES)
        while True:
            following = file.read(FILE_CHUNK_BYTES)
            await send(File(path=name, data=data, last=not following))
            if not following:
                return
            data = following
