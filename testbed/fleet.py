"""The agents of one run, seen from the controller: what each is told, and how long it may take.

    controller --create, shape, execute, ...--> Fleet --KnownAgents--> agent, agent, ...
                                                 │└── Listener <-- what they say --> Hearing --> Record, Display
                                                 └── DeviceEvents: devices that pause, die, come back

Knows nothing of what the program computes, where devices live (a `Runtime` does) or how a link is shaped (an agent
does).
"""

import json
import time
from collections.abc import Callable
from types import TracebackType

from testbed.barriers import Barriers
from testbed.control_network import PROGRAMS_PORT
from testbed.device_events import DeviceEvents
from testbed.display import Display
from testbed.errors import InputError
from testbed.hearing import Hearing
from testbed.job import Job, environment_of
from testbed.keys import rank_keys
from testbed.known_agents import KnownAgents
from testbed.known_device import KnownDevice
from testbed.links import rules_for
from testbed.listener import Listener
from testbed.mailbox import Mailbox
from testbed.protocol.from_agents import LinkCount
from testbed.protocol.to_agents import (
    Begin,
    Bye,
    Hold,
    Next,
    ReadCounters,
    Shape,
    Start,
    Stop,
)
from testbed.record import Record
from testbed.runtimes import Runtime
from testbed.runtimes.surroundings import Identity, Surroundings
from testbed.scenario import Scenario, device_names
from testbed.schedule import Schedule

__all__ = ["Fleet"]

SHAPE_TIMEOUT_S = 30.0
START_TIMEOUT_S = 10.0
COLLECT_TIMEOUT_S = 10.0
DEVICE_S, LINK_S = 1.0, 0.01
"""More time to report, to start and to shape, for each device and each link: all of them may share two cores."""
SETTLE_S = 2.0
DISMISS_S = 10.0
STOP_GRACE_S = 0.5


class Fleet:
    """The controlling end of one run's devices. Use as a context manager: leaving it tells the agents to leave."""

    def __init__(self, scenario: Scenario, runtime: Runtime, record: Record, display: Display):
        self._runtime, self._display = runtime, display
        names = device_names(scenario.devices.count)
        self._devices = {name: KnownDevice(rank, scenario.devices.spec(name)) for rank, name in enumerate(names)}
        self._mailbox = Mailbox(names, lambda line: self._record.log("testbed", line), runtime.keys())
        self._agents = KnownAgents(self._devices, self._mailbox)
        self._barriers = Barriers(self._agents)
        self._hearing = Hearing(self._agents, self._barriers, runtime, display)
        self._listener = Listener(self._agents, self._hearing, runtime)
        self._held = False
        curve = scenario.security.curve
        self._curve = curve == "always" or (curve == "auto" and runtime.needs_keys)
        self._keys = rank_keys(len(names)) if self._curve else [None] * len(names)
        self.turn_to(scenario, record)

    def __enter__(self) -> "Fleet":
        self._mailbox.bind(self._runtime.endpoint())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._held:
            self._agents.broadcast(Bye())
        self._mailbox.close()

    def turn_to(self, scenario: Scenario, record: Record) -> None:
        """Let what comes be of another scenario with the same devices, and have it recorded there."""
        self._scenario, self._record = scenario, record
        on_down = self._barriers.leave
        self._events = DeviceEvents(scenario, self._runtime, self._agents, record=record, on_down=on_down)
        self._hearing.turn_to(record, self._events)
        self._listener.turn_to(self._events)

    # Devices and links

    def create(self) -> None:
        """Make the devices and wait until every agent has said who it is."""
        self._runtime.create({name: device.spec for name, device in self._devices.items()})
        self.register()

    def register(self) -> None:
        """Wait for the agents. Raises DeviceError naming the devices that never showed up."""
        self._listener.wait_for(
            lambda device: device.address is not None,
            self._runtime.register_timeout_s + DEVICE_S * len(self._devices),
            lambda lacking: f"agent of {lacking} never reported{self._refusals()}",
        )
        if self._mailbox.roster.nameless:
            # Whoever started the devices may have started too many: give the others time to report too.
            settled_at = time.monotonic() + SETTLE_S
            while time.monotonic() < settled_at:
                self._listener.pump()
        if faults := self._mailbox.roster.faults({name: device.spec for name, device in self._devices.items()}):
            raise InputError(faults)

    def shape(self, *, with_loss: bool = True) -> None:
        """Put the scenario's links into the kernel of every device, loss patterns and counters at zero."""
        addresses = self.addresses()
        for name, device in self._devices.items():
            device.shaped, device.shaping = False, True
            rules = rules_for(self._scenario, name, addresses)
            self._agents.send(name, Shape(rules=rules if with_loss else rules.without_loss()))
        self._listener.wait_for(
            lambda device: device.shaped,
            SHAPE_TIMEOUT_S + LINK_S * len(self._devices) ** 2,
            lambda lacking: f"links of {lacking} were not shaped",
        )

    def limit(self) -> None:
        """Put CPU and memory limits on the devices."""
        self._runtime.limit({name: device.spec for name, device in self._devices.items()})

    def counters(self) -> dict[str, dict[str, LinkCount]]:
        """Read the counters of every link whose destination is not down, by destination and source."""
        for device in self._devices.values():
            device.counters = {} if device.state == "down" else None
        self._agents.broadcast(ReadCounters())
        self._listener.wait_for(
            lambda device: device.counters is not None,
            START_TIMEOUT_S + DEVICE_S * len(self._devices),
            lambda lacking: f"{lacking} sent no counters",
        )
        return {name: device.counters or {} for name, device in self._devices.items()}

    def hold(self) -> None:
        """Leave the devices running on their own."""
        self._agents.broadcast(Hold())
        self._held = True

    def addresses(self) -> dict[str, str]:
        """Return the data address of every registered device."""
        return self._agents.addresses()

    def activities(self) -> dict[str, str]:
        """Say what every device is doing, in a word or two."""
        return {name: device.activity for name, device in self._devices.items()}

    def facts(self) -> dict[str, object]:
        """Say how links and programs were really set up, for the manifest."""
        first = next(iter(self._devices.values()))
        return {
            "mechanism": first.mechanism,
            "delay": {name: device.mechanism.get("delay") for name, device in self._devices.items()},
            "program_user": first.user,
            "addresses": self.addresses(),
            "curve": self._curve,
            "dropped_on_control": dict(self._mailbox.dropped),
        }

    # Programs

    def execute(self, job: Job, identity: Identity, *, may_wait: bool = False) -> None:
        """Run a program on every device to its end.

        With `may_wait`, a program that asks on every device whether to do the same once more is left waiting; the next
        `execute` then lets it go on, with the job that it has, and `dismiss` ends it. See `Again`.

        Raises DeviceError as soon as a device's program fails, naming the device, its exit code and its last lines.
        """
        self._hearing.may_wait = may_wait
        self._hearing.expect_summary(job.summary)
        waits = False
        try:
            if self._waits():
                self._answer(more=True)
            else:
                self._start(job, identity)
            self._wait_for_end(job, lambda device: device.exited is not None or device.asks)
            waits = self._waits()
            if not waits:  # on some device it has ended
                self._hearing.may_wait = False
                self._answer(more=False)
                self._wait_for_end(job, lambda device: device.exited is not None)
        finally:
            if waits:
                self._record.merge_timelines()
            else:
                self._stop_and_collect()

    def dismiss(self) -> None:
        """Let a program that waits end; how it does is not judged any more."""
        if self._waits():
            self._answer(more=False)
            deadline = time.monotonic() + DISMISS_S
            while self._agents.lacking(lambda device: device.exited is not None) and time.monotonic() < deadline:
                self._listener.pump(stopping=True)
            self._stop_and_collect()

    def _waits(self) -> bool:
        """Whether the program waits on every device to hear whether to do the same once more."""
        return all(device.asks for device in self._devices.values())

    def _answer(self, *, more: bool) -> None:
        for name, device in self._devices.items():
            if device.asks:
                device.asks = False
                self._agents.send(name, Next(more=more))

    def _start(self, job: Job, identity: Identity) -> None:
        self._barriers.clear()
        place = self._runtime.surroundings(Surroundings(identity, job.folder))
        meeting_point = self._meeting_point(place.identity)
        for name, device in self._devices.items():
            start = Start(
                command=job.command,
                environment=environment_of(name, self._devices, identity=place.identity, meeting_point=meeting_point),
                config=json.dumps(job.config),
                folder=str(place.folder),
                uid=place.identity.uid,
                gid=place.identity.gid,
                schedule=self._events.agents_schedule(name) if job.with_events else Schedule(),
                keys=self._keys[device.rank],
            )
            device.begin(start)
            self._agents.send(name, start)
        self._listener.wait_for(
            lambda device: device.started,
            START_TIMEOUT_S + DEVICE_S * len(self._devices),
            lambda lacking: f"{job.name} on {lacking} did not start",
        )
        self._agents.broadcast(Begin())
        if job.with_events:
            self._events.begin()

    def _meeting_point(self, identity: Identity) -> str:
        """Return where the first device's program may listen to the others beside the data network."""
        first = next(iter(self._devices.values()))
        address = f"tcp://{first.control_address}:{PROGRAMS_PORT}" if first.control_address else ""
        return self._runtime.programs_endpoint(identity) or address

    def _stop_and_collect(self) -> None:
        """End what still runs and take in the files that the programs left."""
        self._events.stop()
        for name, device in self._devices.items():
            running = (device.started and device.exited is None) or device.state == "returning"
            if running and name not in self._runtime.exited():
                self._agents.send(name, Stop(grace_s=STOP_GRACE_S))
        deadline = time.monotonic() + COLLECT_TIMEOUT_S
        while time.monotonic() < deadline:
            gone = self._runtime.exited()
            if all(device.collected or not device.started or name in gone for name, device in self._devices.items()):
                break
            self._listener.pump(stopping=True)
        else:
            lacking = ", ".join(self._agents.lacking(lambda device: device.collected or not device.started))
            self._display.say(f"files of {lacking} did not all arrive within {COLLECT_TIMEOUT_S:g} s")
        self._record.merge_timelines()

    def _wait_for_end(self, job: Job, done: Callable[[KnownDevice], bool]) -> None:
        self._listener.wait_for(done, job.timeout_s, lambda lacking: f"{job.name} on {lacking} did not end")

    def _refusals(self) -> str:
        """Say how many calls came with other keys, if any."""
        refused = self._mailbox.dropped["refused"]
        return f" ({refused} calls with other keys were refused)" if refused else ""
