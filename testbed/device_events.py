"""Events on whole devices, and how a device that was restarted comes back.

    DeviceClock --Due restart--> down --Hello of a new life--> returning: Shape, Shaped, Start, Started --Begin--> up
                --Due kill--> down     --Due pause--> paused --Done resume--> up

A device that comes back is shaped as its links are by then, loss patterns and counters at zero, and its program is
started as it was the first time. Barriers, and what the programs make of it all, are not known here.
"""

import signal
import time
from collections.abc import Callable

from testbed.device_action import DEVICE_ACTIONS
from testbed.device_clock import DeviceClock, Done, Due, Trouble
from testbed.errors import DeviceError
from testbed.event_row import event_row
from testbed.known_agents import KnownAgents
from testbed.known_device import KnownDevice
from testbed.links import rules_for
from testbed.protocol.from_agents import Exited, Hello
from testbed.protocol.to_agents import Begin, Shape
from testbed.record import Record
from testbed.runtimes import Runtime
from testbed.scenario import Scenario
from testbed.schedule import Schedule, device_events, schedule_for

__all__ = ["DeviceEvents"]

KILLED = Exited(code=-signal.SIGKILL, last_lines=(), by_event=True)


class DeviceEvents:
    """The events of a scenario that its runtime carries out, while a program runs. `on_down` hears of lost programs."""

    def __init__(
        self,
        scenario: Scenario,
        runtime: Runtime,
        agents: KnownAgents,
        *,
        record: Record,
        on_down: Callable[[str], None],
    ):
        self._scenario, self._runtime = scenario, runtime
        self._agents, self._devices = agents, agents.devices
        self._record, self._on_down = record, on_down
        self._clock = DeviceClock({}, runtime.act)
        self._restarts: dict[str, Done] = {}
        """Those that are done, of devices that are not back."""
        self._back_s: dict[str, float] = {}

    def agents_schedule(self, name: str) -> Schedule:
        """Return what the agent of a device sees to: its links, and what the runtime leaves to it."""
        return schedule_for(self._scenario, name, set(DEVICE_ACTIONS) - self._runtime.acts)

    def begin(self) -> None:
        """Start the clock: a program has started on every device."""
        events = {name: device_events(self._scenario, name, self._runtime.acts) for name in self._devices}
        self._clock = DeviceClock(events, self._runtime.act)
        self._restarts.clear()
        self._back_s.clear()
        self._clock.begin()

    def stop(self) -> None:
        """End what is left of them; what is paused goes on."""
        self._clock.stop()
        self.take_news()
        for device in self._devices.values():
            if device.state == "paused":
                device.state, device.heard_at = "up", time.monotonic()

    def take_news(self) -> None:
        """Take in what has happened. Raises what the runtime could not do."""
        for news in self._clock.news():
            match news:
                case Due(device=name, action=action):
                    self._expect(name, self._devices[name], action)
                case Done(device=name, event=event) if event.action == "restart":
                    self._restarts[name] = news
                    self._finish_restart(name)
                case Done(device=name, event=event, applied_s=applied_s):
                    if event.action == "resume" and self._devices[name].state == "paused":
                        self._devices[name].state, self._devices[name].heard_at = "up", time.monotonic()
                    self._report(news, applied_s)
                case Trouble(error=error):
                    raise error

    def check(self) -> None:
        """Raise DeviceError if a restarted device stays away."""
        limit_s = self._runtime.register_timeout_s
        for name, done in self._restarts.items():
            if self._clock.elapsed_s() - done.applied_s > limit_s:
                raise DeviceError(f"device {name}: must be back within {limit_s:g} s of its restart, got nothing")

    def welcome(self, name: str, hello: Hello) -> None:
        """Take note of an agent that reports; one in a new life of its device has to be told everything again."""
        device = self._devices[name]
        if device.address not in (None, hello.address):
            raise DeviceError(f"device {name}: must come back at {device.address}, got {hello.address}; run it again")
        is_new = device.life != hello.life
        device.address, device.life = hello.address, hello.life
        device.control_address = hello.control_address
        if is_new and device.state in ("down", "returning") and device.start is not None:
            device.state = "returning"
            since_s = self._clock.elapsed_s()
            device.start = device.start.model_copy(update={"since_s": since_s})
            rules = rules_for(self._scenario, name, self._agents.addresses())
            self._agents.send(name, Shape(rules=rules, schedule=device.start.schedule, since_s=since_s))

    def shaped(self, name: str) -> None:
        """Start the program of a device that is on its way back."""
        device = self._devices[name]
        if device.state == "returning" and device.start is not None:
            self._agents.send(name, device.start)

    def started(self, name: str) -> None:
        """Let a device that is back, with its program started, take part again."""
        device = self._devices[name]
        if device.state == "returning":
            device.state = "up"
            self._back_s[name] = self._clock.elapsed_s()
            self._agents.send(name, Begin(elapsed_s=self._back_s[name]))
            self._finish_restart(name)

    def _expect(self, name: str, device: KnownDevice, action: str) -> None:
        """Note that a device stands still or goes down on purpose."""
        if action == "pause" and device.state == "up":
            device.state = "paused"
        if action in ("kill", "restart"):
            device.state, device.started, device.collected = "down", False, False
            device.exited = None if action == "restart" else KILLED
            self._back_s.pop(name, None)
            self._on_down(name)

    def _finish_restart(self, name: str) -> None:
        """Report a restart once it is both done and acknowledged; they may come in either order."""
        if name in self._restarts and name in self._back_s:
            self._report(self._restarts.pop(name), self._back_s[name])
            self._clock.back(name)

    def _report(self, done: Done, acknowledged_s: float) -> None:
        event = done.event
        row = event_row(
            event.number,
            done.device,
            event.action,
            intended_s=event.at_s,
            applied_s=done.applied_s,
            acknowledged_s=acknowledged_s,
        )
        self._record.row("events", row)
