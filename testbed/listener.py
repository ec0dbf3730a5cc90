"""Waiting for the agents of a run: the loop in which a controller spends its time.

    wait_for(shaped, 30 s) ──> pump ──Ping, each second──> agents
                                    <──messages── Mailbox ──> Hearing, which makes it true, or raises
                           ──> is every agent still there?

Every wait has a deadline and names the devices that did not answer. What messages mean is for `Hearing` to know.
"""

import math
import time
from collections.abc import Callable

from testbed.device_events import DeviceEvents
from testbed.errors import DeviceError
from testbed.hearing import Hearing
from testbed.known_agents import KnownAgents
from testbed.known_device import KnownDevice
from testbed.protocol.to_agents import PING_PERIOD_S, SILENCE_LIMIT_S, Ping
from testbed.runtimes import Runtime

__all__ = ["Listener"]

POLL_MS = 100
SHOWN_LINES = 20
"""Of what an agent that ended has printed."""


class Listener:
    """Hears the agents of a run, and notices those that have gone; `turn_to` comes before the first wait."""

    def __init__(self, agents: KnownAgents, hearing: Hearing, runtime: Runtime):
        self._agents, self._hearing, self._runtime = agents, hearing, runtime
        self._pinged_at = 0.0

    def turn_to(self, events: DeviceEvents) -> None:
        """Let what comes be of a scenario with these events."""
        self._events = events

    def wait_for(
        self, has: Callable[[KnownDevice], bool], timeout_s: float | None, complaint: Callable[[str], str]
    ) -> None:
        """Handle messages until something is true of every device.

        Raises DeviceError after `timeout_s`, with the `complaint` about the devices of which it is not.
        """
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while lacking := self._agents.lacking(has):
            if time.monotonic() > deadline:
                raise DeviceError(f"{complaint(', '.join(lacking))} within {timeout_s:g} s")
            self.pump()
            self._check_agents()

    def pump(self, *, stopping: bool = False) -> None:
        """Handle the messages that are there, waiting up to `POLL_MS` for the first; for `stopping` see `Hearing`."""
        now = time.monotonic()
        if now - self._pinged_at > PING_PERIOD_S:
            if now - self._pinged_at > SILENCE_LIMIT_S / 2:  # we were the silent ones
                for device in self._agents.devices.values():
                    device.heard_at = now
            self._pinged_at = now
            self._agents.broadcast(Ping())
        self._events.take_news()
        for name, message in self._agents.mailbox.receive(POLL_MS):
            self._events.take_news()
            self._agents.devices[name].heard_at = time.monotonic()
            self._hearing.take(name, message, stopping=stopping)

    def _check_agents(self) -> None:
        """Raise DeviceError if an agent is silent, has ended, or stays away after a restart, and should not."""
        for name, device in self._agents.devices.items():
            silent_s = time.monotonic() - device.heard_at
            answers = device.address is not None and device.state == "up" and not device.shaping
            if answers and silent_s > SILENCE_LIMIT_S:
                raise DeviceError(f"device {name}: its agent must answer, got nothing for {SILENCE_LIMIT_S:g} s")
        self._events.check()
        exited = self._runtime.exited()
        self._events.take_news()
        for name, code in exited.items():
            if self._agents.devices[name].state not in ("down", "returning"):
                lines = self._runtime.agent_log(name).splitlines()[-SHOWN_LINES:]
                said = "\n".join(f"    {line}" for line in lines)
                raise DeviceError(f"device {name}: its agent ended with status {code}; its last lines:\n{said}")
