"""The agent: one per device, the same in every runtime.

    controller --Shape--> links shaped   --Start--> program runs   --Stop/Bye--> all of it gone
               <--Shaped--               <--Log, Row, Mark, Progress, Barrier, Again, Exited, File, Collected--

Says who it is until it is heard, obeys, and streams what the program says. If the controller falls silent, it stops the
program and exits; after `Hold` it goes on alone. Safe as process 1: reaps orphans, forwards SIGTERM.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import math
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import zmq

from testbed.collect import empty, send_files
from testbed.control_network import ControlNetwork
from testbed.controller_line import ControllerLine
from testbed.device_socket import DeviceSocket
from testbed.errors import TestbedError, UnsupportedError
from testbed.event_clock import EventClock
from testbed.event_row import Row as EventRow
from testbed.keys import write_private
from testbed.links import DeviceRules
from testbed.own_limits import own_limits
from testbed.program import Program, search_path
from testbed.protocol.calls import AgainCall, BarrierCall, Call, MarkCall, ProgressCall, RowCall
from testbed.protocol.frames import decode_controller, encode
from testbed.protocol.from_agents import (
    Again,
    AgentMessage,
    Barrier,
    Beat,
    Collected,
    Counters,
    Exited,
    Failed,
    Hello,
    LinkCount,
    Log,
    Mark,
    Progress,
    Row,
    Shaped,
    Started,
)
from testbed.protocol.to_agents import (
    SILENCE_LIMIT_S,
    BarrierOpen,
    Begin,
    Bye,
    ControllerMessage,
    Hold,
    Next,
    Ping,
    ReadCounters,
    Shape,
    Start,
    Stop,
)
from testbed.schedule import Schedule, losses_to_come, rules_at
from testbed.shaper import Shaper
from testbed.urgency import go_first

__all__ = ["Agent", "main"]

HELLO_PERIOD_S = 0.2
FIRST_WORD_LIMIT_S = 60.0
"""A named agent whose controller has never spoken leaves after this: the controller died while starting it."""
STANDSTILL_S = 1.0
"""An agent that was not run for so long was paused with its device, and cannot know what the controller said."""
SWITCH_INTERVAL_S = 0.001
"""How long the event clock may have to wait for the interpreter, instead of Python's 5 ms."""
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Where torch's libraries look for the network; else they ask what the host's name means, which is the loopback."""
log = logging.getLogger("testbed.agent")


class Agent:
    """One device's agent. `folder` is its own, for socket, config and output of the program.

    Without a name it takes part as whatever device the controller makes of it.
    """

    def __init__(self, device: str | None, endpoint: str, interface: str, folder: Path, *, keys: Path | None = None):
        self._folder = folder
        limits = own_limits() if device is None else None
        control = ControlNetwork.find(endpoint)
        self._hello = Hello(
            device=device,
            address=_ipv4_address(interface),
            control_address=None if control is None else _ipv4_address(control.interface),
            pid=os.getpid(),
            life=secrets.token_hex(8),
            limits=limits,
        )
        self._interface = interface
        self._shaper = Shaper(interface)
        self._shaping = threading.Lock()
        self._rules: DeviceRules | None = None
        self._clock: EventClock | None = None
        self._event_rows: deque[EventRow] = deque()
        self._num_dropped = 0
        self._device_socket = DeviceSocket(folder / "socket", self._answer)
        self._barriers: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._next: asyncio.Future[bool] | None = None
        """The answer that a program waits for which has asked whether to do the same once more."""
        self._program: Program | None = None
        self._starting = False
        # Whoever starts agents without a name (Compose, Swarm) starts the controller apart; it may prepare for long.
        self._first_word_limit_s = math.inf if device is None else FIRST_WORD_LIMIT_S
        identity = device or f"nameless-{secrets.token_hex(8)}"
        self._line = ControllerLine(endpoint, identity, keys, keys_timeout_s=self._first_word_limit_s)
        self._watch: asyncio.Task[None] | None = None
        self._heard_at: float | None = None
        self._held = False
        self._leaving = asyncio.Event()

    async def run(self) -> None:
        """Serve until told to leave, until signalled, or until the controller is silent for too long."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leaving.set)
        jobs = (self._announce(), self._listen(), self._reap(), self._wait_for_signal())
        tasks = [asyncio.create_task(job) for job in jobs]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await self._stop_program(grace_s=1.0)
        self._stop_clock()
        await self._device_socket.close()
        self._shaper.clear()
        self._line.close()
        for task in done:
            task.result()

    async def _wait_for_signal(self) -> None:
        await self._leaving.wait()

    @property
    def _out(self) -> Path:
        """Where the program leaves files."""
        return self._folder / "out"

    # Talking to the controller

    async def _send(self, message: AgentMessage) -> None:
        await self._line.send(encode(message))

    async def _announce(self) -> None:
        """Say hello until heard (and for ever once held), and leave when the controller has gone."""
        hello, started_at = encode(self._hello), time.monotonic()
        while True:
            if self._heard_at is None or self._held:
                if self._heard_at is None:
                    self._line.renew()
                with contextlib.suppress(zmq.Again):
                    await self._line.send(hello, zmq.NOBLOCK)
            limit_s = self._first_word_limit_s if self._heard_at is None else SILENCE_LIMIT_S
            if not self._held and time.monotonic() - (self._heard_at or started_at) > limit_s:
                log.error("controller silent for %s s; leaving", limit_s)
                return
            before = time.monotonic()
            await asyncio.sleep(HELLO_PERIOD_S)
            if self._heard_at is not None and time.monotonic() - before > STANDSTILL_S:
                self._heard_at = time.monotonic()

    async def _listen(self) -> None:
        while True:
            frame = await self._line.receive()
            try:
                message = decode_controller(frame)
            except ValueError as error:
                if self._num_dropped == 0:
                    log.warning("dropped a frame: %s; more are counted but not logged", str(error)[:200])
                self._num_dropped += 1
                continue
            self._heard_at = time.monotonic()
            if isinstance(message, Bye):
                return
            try:
                await self._obey(message)
            except TestbedError as error:
                await self._send(Failed(error=str(error), exit_code=error.exit_code))

    async def _obey(self, message: ControllerMessage) -> None:
        match message:
            case Shape(rules=rules, schedule=schedule, since_s=since_s):
                with self._shaping:
                    self._shaper.apply(rules_at(rules, schedule, since_s))
                self._rules = rules
                await self._send(Shaped(mechanism=self._shaper.mechanism()))
            case Start():
                await self._start(message)
            case Begin(elapsed_s=elapsed_s):
                if self._clock is not None:
                    self._clock.begin(elapsed_s)
            case BarrierOpen(name=name):
                self._barriers.pop(name, asyncio.Event()).set()
            case Next(more=more):
                if self._next is not None and not self._next.done():
                    self._next.set_result(more)
            case ReadCounters():
                await self._send(Counters(links=self._counters()))
            case Stop(grace_s=grace_s):
                await self._stop_program(grace_s)
            case Hold():
                self._held = True
            case Ping():
                await self._send(Beat())

    # The program

    async def _start(self, start: Start) -> None:
        await self._stop_program(grace_s=0.0)
        out = self._out
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        out.chmod(0o755)
        config = self._folder / "config.json"
        config.write_text(start.config)
        config.chmod(0o644)  # whatever our umask: the program may be another user's
        await self._device_socket.open(start.uid)
        if start.uid is not None:
            os.chown(out, start.uid, -1 if start.gid is None else start.gid)
        await asyncio.to_thread(self._load_ahead, start.schedule)
        environment = {
            **os.environ,
            **dict.fromkeys(INTERFACE_VARIABLES, self._interface),
            "PATH": search_path(),
            **start.environment,
            "TESTBED_CONFIG": str(config),
            "TESTBED_SOCKET": str(self._device_socket.path),
            "TESTBED_OUT": str(out),
            "CURVE_KEYS": self._leave_keys(start),
        }
        self._starting = True
        try:
            self._program = await Program.start(
                start.command,
                environment=environment,
                folder=start.folder,
                on_line=self._forward_line,
                uid=start.uid,
                gid=start.gid,
            )
        finally:
            self._starting = False
        user = pwd.getpwuid(os.geteuid() if start.uid is None else start.uid).pw_name
        self._clock = self._set_clock(start.schedule, start.since_s, self._program)
        await self._send(Started(pid=self._program.pid, user=user))
        self._watch = asyncio.create_task(self._see_it_end(self._program, out, self._clock))

    def _leave_keys(self, start: Start) -> str:
        """Write the program's key file, which only its user may read; return its path, or nothing if it gets none."""
        path = self._folder / "keys.json"
        if start.keys is None:
            path.unlink(missing_ok=True)
            return ""
        write_private(path, start.keys, start.uid, start.gid)
        return str(path)

    async def _forward_line(self, stream: str, line: str) -> None:
        await self._send(Log(stream="stderr" if stream == "stderr" else "stdout", line=line))

    async def _see_it_end(self, program: Program, out: Path, clock: EventClock | None) -> None:
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
        await self._send(Collected(left_out=await send_files(out, self._send)))
        self._program = None

    async def _stop_program(self, grace_s: float) -> None:
        if self._program is not None:
            await self._program.stop(grace_s)
        if self._watch is not None:
            await asyncio.wait([self._watch], timeout=2.0)

    # What happens meanwhile

    def _load_ahead(self, schedule: Schedule) -> None:
        """Get the loss patterns ready that events will turn links to, before anything waits for them."""
        if self._rules is not None and schedule.links:
            go_first()  # for this thread only; the controller waits, and all devices do this at once
            with self._shaping:
                self._shaper.load_ahead(losses_to_come(self._rules, schedule))

    def _set_clock(self, schedule: Schedule, since_s: float | None, program: Program) -> EventClock | None:
        """Make the clock of a schedule, not begun yet; None where nothing happens."""
        if self._rules is None or schedule == Schedule():
            return None
        loop = asyncio.get_running_loop()

        def on_row(row: EventRow) -> None:
            self._event_rows.append(row)
            loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self._send_event_rows()))

        def on_error(error: TestbedError) -> None:
            failed = Failed(error=str(error), exit_code=error.exit_code)
            loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self._send(failed)))

        return EventClock(
            schedule,
            self._rules,
            self._shaper,
            lock=self._shaping,
            signal_program=program.signal,
            on_row=on_row,
            on_error=on_error,
            since_s=since_s,
        )

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.stop()
            self._clock = None

    async def _send_event_rows(self) -> None:
        while self._event_rows:
            await self._send(Row(table="events", row=self._event_rows.popleft()))

    # What the program asks

    async def _answer(self, call: Call) -> dict[str, Any]:
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
                links = self._counters()
                await self._send(Mark(name=name, links=links))
                return {"links": {source: count.model_dump() for source, count in links.items()}}
            case AgainCall():
                self._next = asyncio.get_running_loop().create_future()
                left_out = await send_files(self._out, self._send)
                empty(self._out)
                await self._send(Again(left_out=left_out))
                return {"again": await self._next}
        return {}

    def _counters(self) -> dict[str, LinkCount]:
        with self._shaping:
            counted = self._shaper.counters()
        return {
            source: LinkCount(bytes=count.bytes, packets=count.packets, lost=count.lost, overflowed=count.overflowed)
            for source, count in counted.items()
        }

    # Process 1

    async def _reap(self) -> None:
        """Collect orphans when this is process 1; the program's own end is left to asyncio."""
        while os.getpid() == 1:
            ended = None
            with contextlib.suppress(ChildProcessError):
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            own = self._program.pid if self._program is not None else None
            if ended is None or ended.si_pid == own or self._starting:
                await asyncio.sleep(0.5)
            else:
                os.waitpid(ended.si_pid, 0)
        await self._leaving.wait()


def _ipv4_address(interface: str) -> str:
    shown = subprocess.run(
        ["ip", "-j", "-4", "address", "show", "dev", interface], capture_output=True, text=True, check=True
    )
    return str(json.loads(shown.stdout)[0]["addr_info"][0]["local"])


def main() -> None:
    """Run an agent; what it prints goes to the runtime's log of this device."""
    parser = argparse.ArgumentParser(prog="python -m testbed.agent", description=__doc__)
    parser.add_argument("--device", help="its name; left out, the controller gives it one")
    parser.add_argument("--endpoint", required=True, help="the controller's ZeroMQ endpoint")
    parser.add_argument("--interface", help="the interface of the data network; left out, the one that is not control")
    parser.add_argument("--keys", type=Path, help="its key file, once it is there; left out, nothing is encrypted")
    parser.add_argument("--folder", required=True, type=Path, help="a working folder of its own")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    # Process 1 gets no signal that it does not handle; the loop takes over once it runs.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        interface = arguments.interface or _join_networks(arguments.endpoint, arguments.folder)
    except TestbedError as error:
        sys.exit(str(error))

    async def serve() -> None:
        where = (arguments.endpoint, interface, arguments.folder)
        await Agent(arguments.device, *where, keys=arguments.keys).run()

    try:
        asyncio.run(serve())
    except TestbedError as error:
        sys.exit(str(error))


def _join_networks(endpoint: str, folder: Path) -> str:
    """Keep the network to the controller for ourselves; return the interface of the data network."""
    control = ControlNetwork.find(endpoint)
    if control is None:
        raise UnsupportedError(f"--interface: must be given with an endpoint that is no TCP address, got {endpoint}")
    interface = control.data_interface()
    control.rank_addresses(folder)
    control.reserve()
    return interface


if __name__ == "__main__":
    main()
