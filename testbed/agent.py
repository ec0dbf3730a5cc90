"""The agent: one per device, the same in every runtime.

    controller --Shape--> DeviceLinks    --Start--> DeviceProgram   --Stop/Bye--> all of it gone
               <--Shaped--               <--Log, Row, Mark, Progress, Barrier, Again, Exited, File, Collected--

Says who it is until it is heard, and has others do what it is told. If the controller falls silent, it stops the
program and exits; after `Hold` it goes on alone. Safe as process 1: reaps orphans, forwards SIGTERM.
"""

import argparse
import asyncio
import contextlib
import logging
import math
import os
import secrets
import signal
import sys
import time
from pathlib import Path

import zmq

from testbed.control_network import ControlNetwork, ipv4_address
from testbed.controller_line import ControllerLine
from testbed.device_links import DeviceLinks
from testbed.device_program import DeviceProgram
from testbed.errors import TestbedError, UnsupportedError
from testbed.own_limits import own_limits
from testbed.protocol.frames import decode_controller, encode
from testbed.protocol.from_agents import (
    AgentMessage,
    Beat,
    Counters,
    Failed,
    Hello,
    Shaped,
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

__all__ = ["Agent", "main"]

HELLO_PERIOD_S = 0.2
FIRST_WORD_LIMIT_S = 60.0
"""A named agent whose controller has never spoken leaves after this: the controller died while starting it."""
STANDSTILL_S = 1.0
"""An agent that was not run for so long was paused with its device, and cannot know what the controller said."""
SWITCH_INTERVAL_S = 0.001
"""How long the event clock may have to wait for the interpreter, instead of Python's 5 ms."""
log = logging.getLogger("testbed.agent")


class Agent:
    """One device's agent. `folder` is its own, for what its program finds and leaves.

    Without a name it takes part as whatever device the controller makes of it.
    """

    def __init__(self, device: str | None, endpoint: str, interface: str, folder: Path, *, keys: Path | None = None):
        limits = own_limits() if device is None else None
        control = ControlNetwork.find(endpoint)
        self._hello = Hello(
            device=device,
            address=ipv4_address(interface),
            control_address=None if control is None else ipv4_address(control.interface),
            pid=os.getpid(),
            life=secrets.token_hex(8),
            limits=limits,
        )
        self._links = DeviceLinks(interface)
        self._program = DeviceProgram(folder, interface, self._links, self._send)
        self._num_dropped = 0
        # Whoever starts agents without a name (Compose, Swarm) starts the controller apart; it may prepare for long.
        self._first_word_limit_s = math.inf if device is None else FIRST_WORD_LIMIT_S
        identity = device or f"nameless-{secrets.token_hex(8)}"
        self._line = ControllerLine(endpoint, identity, keys, keys_timeout_s=self._first_word_limit_s)
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
        await self._program.close()
        self._links.clear()
        self._line.close()
        for task in done:
            task.result()

    async def _wait_for_signal(self) -> None:
        await self._leaving.wait()

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
                await self._send(Shaped(mechanism=self._links.shape(rules, schedule, since_s)))
            case Start():
                await self._program.start(message)
            case Begin(elapsed_s=elapsed_s):
                self._program.begin(elapsed_s)
            case BarrierOpen(name=name):
                self._program.open_barrier(name)
            case Next(more=more):
                self._program.answer(more=more)
            case ReadCounters():
                await self._send(Counters(links=self._links.counters()))
            case Stop(grace_s=grace_s):
                await self._program.stop(grace_s)
            case Hold():
                self._held = True
            case Ping():
                await self._send(Beat())

    # Process 1

    async def _reap(self) -> None:
        """Collect orphans when this is process 1; the program's own end is left to asyncio."""
        while os.getpid() == 1:
            ended = None
            with contextlib.suppress(ChildProcessError):
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or self._program.claims(ended.si_pid):
                await asyncio.sleep(0.5)
            else:
                os.waitpid(ended.si_pid, 0)
        await self._leaving.wait()


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
