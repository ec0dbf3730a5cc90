"""The program of one device, as its agent runs it: what it finds, what it says and asks, how it ends.

    Start ──> folder/ config.json  keys.json  out/  socket ──> Program, and the clock of the events meanwhile
    program ──stdout, stderr──> Log       ──device socket──> Row, Progress, Mark, Barrier, Again
            ──its end──> Exited, File ..., Collected

One at a time: a start ends what ran before. Links are changed and counted by `DeviceLinks`.
"""

import asyncio
import os
import pwd
import shutil
import signal
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from testbed.collect import empty, send_files
from testbed.device_links import DeviceLinks
from testbed.device_socket import DeviceSocket
from testbed.errors import TestbedError
from testbed.event_clock import EventClock
from testbed.event_row import Row as EventRow
from testbed.keys import write_private
from testbed.program import Program, search_path
from testbed.protocol.calls import AgainCall, BarrierCall, Call, MarkCall, ProgressCall, RowCall
from testbed.protocol.from_agents import (
    Again,
    AgentMessage,
    Barrier,
    Collected,
    Exited,
    Failed,
    Log,
    Mark,
    Progress,
    Row,
    Started,
)
from testbed.protocol.to_agents import Start
from testbed.schedule import Schedule

__all__ = ["DeviceProgram"]

INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Where torch's libraries look for the network; else they ask what the host's name means, which is the loopback."""
ENDING_S = 2.0
"""How long a stopped program's files and last words may take."""


class DeviceProgram:
    """The program of a device. `folder` is the agent's own; `send` says something to the controller."""

    def __init__(
        self, folder: Path, interface: str, links: DeviceLinks, send: Callable[[AgentMessage], Awaitable[None]]
    ):
        self._folder, self._interface, self._links, self._send = folder, interface, links, send
        self._device_socket = DeviceSocket(folder / "socket", self._answer)
        self._barriers: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._next: asyncio.Future[bool] | None = None
        """The answer that a program waits for which has asked whether to do the same once more."""
        self._program: Program | None = None
        self._starting = False
        self._watch: asyncio.Task[None] | None = None
        self._clock: EventClock | None = None
        self._event_rows: deque[EventRow] = deque()

    # What it is told

    async def start(self, start: Start) -> None:
        """Start a program, after the end of the one that ran."""
        await self.stop(grace_s=0.0)
        config = self._lay_out(start)
        await self._device_socket.open(start.uid)
        await asyncio.to_thread(self._links.load_ahead, start.schedule)
        self._starting = True
        try:
            self._program = await Program.start(
                start.command,
                environment=self._environment(start, config),
                folder=start.folder,
                on_line=self._forward_line,
                uid=start.uid,
                gid=start.gid,
            )
        finally:
            self._starting = False
        user = pwd.getpwuid(os.geteuid() if start.uid is None else start.uid).pw_name
        self._clock = self._clock_of(start.schedule, start.since_s, self._program)
        await self._send(Started(pid=self._program.pid, user=user))
        self._watch = asyncio.create_task(self._see_it_end(self._program, self._clock))

    def begin(self, elapsed_s: float) -> None:
        """Let the events begin: the program has started on every device."""
        if self._clock is not None:
            self._clock.begin(elapsed_s)

    def open_barrier(self, name: str) -> None:
        """Let the program go on that waits there."""
        self._barriers.pop(name, asyncio.Event()).set()

    def answer(self, *, more: bool) -> None:
        """Tell a program that has asked whether to do the same once more."""
        if self._next is not None and not self._next.done():
            self._next.set_result(more)

    async def stop(self, grace_s: float) -> None:
        """End the program's whole process group, if it runs, and see that what it left has been sent."""
        if self._program is not None:
            await self._program.stop(grace_s)
        if self._watch is not None:
            await asyncio.wait([self._watch], timeout=ENDING_S)

    async def close(self) -> None:
        """End all of it."""
        await self.stop(grace_s=1.0)
        self._stop_clock()
        await self._device_socket.close()

    def claims(self, pid: int) -> bool:
        """Whether asyncio waits, or may be about to wait, for the end of this process."""
        return self._starting or (self._program is not None and pid == self._program.pid)

    # What it finds

    @property
    def _out(self) -> Path:
        """Where the program leaves files."""
        return self._folder / "out"

    def _lay_out(self, start: Start) -> Path:
        """Make the program's folder, empty, and its config file, whose path is returned."""
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir()
        self._out.chmod(0o755)
        if start.uid is not None:
            os.chown(self._out, start.uid, -1 if start.gid is None else start.gid)
        config = self._folder / "config.json"
        config.write_text(start.config)
        config.chmod(0o644)  # whatever our umask: the program may be another user's
        return config

    def _environment(self, start: Start, config: Path) -> dict[str, str]:
        return {
            **os.environ,
            **dict.fromkeys(INTERFACE_VARIABLES, self._interface),
            "PATH": search_path(),
            **start.environment,
            "TESTBED_CONFIG": str(config),
            "TESTBED_SOCKET": str(self._device_socket.path),
            "TESTBED_OUT": str(self._out),
            "CURVE_KEYS": self._leave_keys(start),
        }

    def _leave_keys(self, start: Start) -> str:
        """Write the program's key file, which only its user may read; return its path, or nothing if it gets none."""
        path = self._folder / "keys.json"
        if start.keys is None:
            path.unlink(missing_ok=True)
            return ""
        write_private(path, start.keys, start.uid, start.gid)
        return str(path)

    # What it says, and its end

    async def _forward_line(self, stream: str, line: str) -> None:
        await self._send(Log(stream="stderr" if stream == "stderr" else "stdout", line=line))

    async def _see_it_end(self, program: Program, clock: EventClock | None) -> None:
        code = await program.wait()
        self._stop_clock()
        await self._send_event_rows()
        await self._device_socket.close()
        if self._device_socket.refused:
            line = f"[device socket: {self._device_socket.refused} requests were refused]"
            await self._send(Log(stream="agent", line=line))
            self._device_socket.refused = 0
        by_event = clock is not None and clock.killed and code == -signal.SIGKILL
        await self._send(Exited(code=code, last_lines=program.last_lines, by_event=by_event))
        await self._send(Collected(left_out=await send_files(self._out, self._send)))
        self._program = None

    async def _answer(self, call: Call) -> dict[str, Any]:
        """Do what the program asks for over the device socket; return what the reply says."""
        match call:
            case RowCall(table=table, row=row):
                await self._send(Row(table=table, row=row))
            case ProgressCall(label=label, done=done, total=total):
                await self._send(Progress(label=label, done=done, total=total))
            case BarrierCall(name=name):
                opened = self._barriers[name]
                await self._send(Barrier(name=name))
                await opened.wait()
            case MarkCall(name=name):
                links = self._links.counters()
                await self._send(Mark(name=name, links=links))
                return {"links": {source: count.model_dump() for source, count in links.items()}}
            case AgainCall():
                self._next = asyncio.get_running_loop().create_future()
                left_out = await send_files(self._out, self._send)
                empty(self._out)
                await self._send(Again(left_out=left_out))
                return {"again": await self._next}
        return {}

    # What happens meanwhile

    def _clock_of(self, schedule: Schedule, since_s: float | None, program: Program) -> EventClock | None:
        """Make the clock of a schedule, whose thread leaves rows and errors for the event loop to send."""
        loop = asyncio.get_running_loop()

        def on_row(row: EventRow) -> None:
            self._event_rows.append(row)
            loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self._send_event_rows()))

        def on_error(error: TestbedError) -> None:
            failed = Failed(error=str(error), exit_code=error.exit_code)
            loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self._send(failed)))

        return self._links.clock(schedule, since_s, signal_program=program.signal, on_row=on_row, on_error=on_error)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.stop()
            self._clock = None

    async def _send_event_rows(self) -> None:
        while self._event_rows:
            await self._send(Row(table="events", row=self._event_rows.popleft()))
