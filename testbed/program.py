"""One program on one device: started without privileges, watched, stopped with all its children.

    agent --start--> setpriv (no capabilities, no new privileges, another user if asked) --exec--> program
                     own session and process group; stdout and stderr come back line by line

Knows nothing of links or of the controller.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from testbed.errors import DeviceError

__all__ = ["Program", "search_path", "without_privileges"]

LAST_LINES = 20
LINE_LIMIT_BYTES = 1 << 20
DRAIN_WAIT_S = 1.0

LineHandler = Callable[[str, str], Awaitable[None]]


def without_privileges(command: Sequence[str], uid: int | None = None, gid: int | None = None) -> list[str]:
    """Wrap a command so that it starts with no capabilities and can never gain any."""
    user = [] if uid is None else ["--reuid", str(uid), "--regid", str(uid if gid is None else gid), "--init-groups"]
    drop = ["--inh-caps", "-all", "--ambient-caps", "-all", "--bounding-set", "-all", "--no-new-privs"]
    return ["setpriv", *user, *drop, "--", *command]


def search_path() -> str:
    """PATH with this interpreter's own folder first, so that `astra` is the one installed beside us."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


class Program:
    """A running program."""

    def __init__(self, process: asyncio.subprocess.Process, on_line: LineHandler):
        self._process = process
        self._on_line = on_line
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._readers = [
            asyncio.create_task(self._read("stdout", process.stdout)),
            asyncio.create_task(self._read("stderr", process.stderr)),
        ]

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: str,
        on_line: LineHandler,
        uid: int | None = None,
        gid: int | None = None,
    ) -> "Program":
        """Start a program. Raises DeviceError if it is not there or may not be run."""
        path = environment.get("PATH", os.defpath)
        if shutil.which(command[0], path=path) is None:
            raise DeviceError(
                f"workload.command: must name a program on the device, got {command[0]!r}; PATH is {path}"
            )
        try:
            process = await asyncio.create_subprocess_exec(
                *without_privileges(command, uid, gid),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=dict(environment),
                cwd=folder,
                start_new_session=True,
                limit=LINE_LIMIT_BYTES,
            )
        except OSError as error:
            raise DeviceError(f"workload.command: {' '.join(command)} did not start: {error}") from error
        return cls(process, on_line)

    @property
    def pid(self) -> int:
        """Process id, also the id of its process group."""
        return self._process.pid

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last lines of both streams together."""
        return tuple(self._last)

    async def wait(self) -> int:
        """Wait for the end and for all its output; the exit code is negative for a signal.

        Children that the program left behind are killed: a device is empty between two programs.
        """
        code = await self._process.wait()
        self.signal(signal.SIGKILL)
        await asyncio.wait(self._readers, timeout=DRAIN_WAIT_S)
        for reader in self._readers:
            reader.cancel()
        return code

    def signal(self, number: int) -> None:
        """Send a signal to the program's whole process group, if any of it is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM to the process group; SIGKILL after `grace_s`."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._process.wait()), grace_s)
        self.signal(signal.SIGKILL)

    async def _read(self, stream: str, reader: asyncio.StreamReader | None) -> None:
        assert reader is not None
        while True:
            try:
                raw = await reader.readline()
            except ValueError:  # a line over the limit: the reader has thrown it away
                raw = b"[line over 1 MiB left out]\n"
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip("\n")
            self._last.append(line)
            await self._on_line(stream, line)
