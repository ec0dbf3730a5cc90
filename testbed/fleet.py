"""The agents of one run, seen from the controller: what each was told and what it said.

    controller --create, shape, execute, ...--> Fleet --Mailbox--> agent, agent, ...
                                                 │└── rows, logs, marks, files --> Record, progress --> Display
                                                 └── DeviceEvents: devices that pause, die, come back

Every wait has a deadline and names the devices that did not answer. Knows nothing of what the program computes, where
devices live (a `Runtime` does) or how a link is shaped (an agent does).
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from testbed.control_network import PROGRAMS_PORT
from testbed.device_events import DeviceEvents
from testbed.display import Display
from testbed.errors import DeviceError, InputError, UnsupportedError
from testbed.keys import rank_keys
from testbed.known_device import KnownDevice
from testbed.links import rules_for
from testbed.mailbox import Mailbox
from testbed.printed import PrintedRows
from testbed.protocol.from_agents import (
    Again,
    AgentMessage,
    Barrier,
    Beat,
    Collected,
    Counters,
    Exited,
    Failed,
    File,
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
    PING_PERIOD_S,
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
from testbed.record import Record
from testbed.runtimes import Runtime
from testbed.runtimes.surroundings import Identity, Surroundings
from testbed.scenario import Scenario, device_names
from testbed.schedule import Schedule

__all__ = ["Fleet", "Identity", "Job"]

SHAPE_TIMEOUT_S = 30.0
START_TIMEOUT_S = 10.0
COLLECT_TIMEOUT_S = 10.0
DEVICE_S, LINK_S = 1.0, 0.01
"""More time to report, to start and to shape, for each device and each link: all of them may share two cores."""
SETTLE_S = 2.0
DISMISS_S = 10.0
STOP_GRACE_S = 0.5
POLL_MS = 100
MASTER_PORT = 29500


@dataclass(frozen=True)
class Job:
    """A program to run on every device, and what it gets as configuration.

    `folder` is where it starts if devices have this machine's files.
    """

    name: str
    command: tuple[str, ...]
    config: Mapping[str, object]
    folder: Path
    timeout_s: float | None = None
    with_events: bool = False
    """Whether the scenario's events happen while it runs."""
    summary: Mapping[str, str] = field(default_factory=dict)
    """Columns of the summary by their place in what it prints; see `PrintedRows`."""


class Fleet:
    """The controlling end of one run's devices. Use as a context manager: leaving it tells the agents to leave."""

    def __init__(self, scenario: Scenario, runtime: Runtime, record: Record, display: Display):
        self._scenario, self._runtime, self._record, self._display = scenario, runtime, record, display
        names = device_names(scenario.devices.count)
        self._devices = {name: KnownDevice(rank, scenario.devices.spec(name)) for rank, name in enumerate(names)}
        self._barriers: dict[str, set[str]] = {}
        self._printed: dict[str, PrintedRows] = {}
        self._pinged_at = 0.0
        self._held = False
        self._may_wait = False
        curve = scenario.security.curve
        self._curve = curve == "always" or (curve == "auto" and runtime.needs_keys)
        self._keys = rank_keys(len(names)) if self._curve else [None] * len(names)
        self._mailbox = Mailbox(names, lambda line: self._record.log("testbed", line), runtime.keys())
        self._events = self._events_of(scenario, record)

    def __enter__(self) -> "Fleet":
        self._mailbox.bind(self._runtime.endpoint())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._held:
            self._broadcast(Bye())
        self._mailbox.close()

    def turn_to(self, scenario: Scenario, record: Record) -> None:
        """Let what comes be of another scenario with the same devices, and have it recorded there."""
        self._scenario, self._record = scenario, record
        self._events = self._events_of(scenario, record)

    def _events_of(self, scenario: Scenario, record: Record) -> DeviceEvents:
        mailbox, on_down = self._mailbox, self._leave_barriers
        return DeviceEvents(scenario, self._runtime, self._devices, mailbox=mailbox, record=record, on_down=on_down)

    # Devices and links

    def create(self) -> None:
        """Make the devices and wait until every agent has said who it is."""
        self._runtime.create({name: device.spec for name, device in self._devices.items()})
        self.register()

    def register(self) -> None:
        """Wait for the agents. Raises DeviceError naming the devices that never showed up."""
        self._wait(
            lambda: not self._lacking(lambda device: device.address is not None),
            self._runtime.register_timeout_s + DEVICE_S * len(self._devices),
            lambda: (
                f"agent of {self._lacking_text(lambda device: device.address is not None)} never reported"
                f"{self._refusals()}"
            ),
        )
        if self._mailbox.roster.nameless:
            # Whoever started the devices may have started too many: give the others time to report too.
            settled_at = time.monotonic() + SETTLE_S
            while time.monotonic() < settled_at:
                self._pump()
        if faults := self._mailbox.roster.faults({name: device.spec for name, device in self._devices.items()}):
            raise InputError(faults)

    def shape(self, *, with_loss: bool = True) -> None:
        """Put the scenario's links into the kernel of every device, loss patterns and counters at zero."""
        addresses = self.addresses()
        for name, device in self._devices.items():
            device.shaped, device.shaping = False, True
            rules = rules_for(self._scenario, name, addresses)
            self._mailbox.send(name, Shape(rules=rules if with_loss else rules.without_loss()))
        self._wait(
            lambda: not self._lacking(lambda device: device.shaped),
            SHAPE_TIMEOUT_S + LINK_S * len(self._devices) ** 2,
            lambda: f"links of {self._lacking_text(lambda device: device.shaped)} were not shaped",
        )

    def limit(self) -> None:
        """Put CPU and memory limits on the devices."""
        self._runtime.limit({name: device.spec for name, device in self._devices.items()})

    # Programs

    def execute(self, job: Job, identity: Identity, *, may_wait: bool = False) -> None:
        """Run a program on every device to its end.

        With `may_wait`, a program that asks on every device whether to do the same once more is left waiting; the next
        `execute` then lets it go on, with the job that it has, and `dismiss` ends it. See `Again`.

        Raises DeviceError as soon as a device's program fails, naming the device, its exit code and its last lines.
        """
        self._may_wait = may_wait
        self._printed = {name: PrintedRows(name, job.summary) for name in self._devices}
        waits = False
        try:
            if self._waits():
                self._answer(more=True)
            else:
                self._start(job, identity)
            self._wait_for_all(job, lambda device: device.exited is not None or device.asks)
            waits = self._waits()
            if not waits:  # on some device it has ended
                self._may_wait = False
                self._answer(more=False)
                self._wait_for_all(job, lambda device: device.exited is not None)
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
            while self._lacking(lambda device: device.exited is not None) and time.monotonic() < deadline:
                self._pump(stopping=True)
            self._stop_and_collect()

    def _waits(self) -> bool:
        """Whether the program waits on every device to hear whether to do the same once more."""
        return all(device.asks for device in self._devices.values())

    def _answer(self, *, more: bool) -> None:
        for name, device in self._devices.items():
            if device.asks:
                device.asks = False
                self._mailbox.send(name, Next(more=more))

    def _wait_for_all(self, job: Job, done: Callable[[KnownDevice], bool]) -> None:
        self._wait(
            lambda: not self._lacking(done),
            job.timeout_s,
            lambda: f"{job.name} on {self._lacking_text(done)} did not end",
        )

    def counters(self) -> dict[str, dict[str, LinkCount]]:
        """Read the counters of every link whose destination is not down, by destination and source."""
        for device in self._devices.values():
            device.counters = {} if device.state == "down" else None
        self._broadcast(ReadCounters())
        self._wait(
            lambda: not self._lacking(lambda device: device.counters is not None),
            START_TIMEOUT_S + DEVICE_S * len(self._devices),
            lambda: f"{self._lacking_text(lambda device: device.counters is not None)} sent no counters",
        )
        return {name: device.counters or {} for name, device in self._devices.items()}

    def hold(self) -> None:
        """Leave the devices running on their own."""
        self._broadcast(Hold())
        self._held = True

    def addresses(self) -> dict[str, str]:
        """Return the data address of every registered device."""
        return {name: device.address for name, device in self._devices.items() if device.address is not None}

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

    def _start(self, job: Job, identity: Identity) -> None:
        self._barriers.clear()
        place = self._runtime.surroundings(Surroundings(identity, job.folder))
        for name, device in self._devices.items():
            device.started, device.asks, device.exited, device.collected = False, False, None, False
            device.paused_program = False
            device.start = Start(
                command=job.command,
                environment=self._environment(name, device, place.identity),
                config=json.dumps(job.config),
                folder=str(place.folder),
                uid=place.identity.uid,
                gid=place.identity.gid,
                schedule=self._events.agents_schedule(name) if job.with_events else Schedule(),
                keys=self._keys[device.rank],
            )
            self._mailbox.send(name, device.start)
        self._wait(
            lambda: not self._lacking(lambda device: device.started),
            START_TIMEOUT_S + DEVICE_S * len(self._devices),
            lambda: f"{job.name} on {self._lacking_text(lambda device: device.started)} did not start",
        )
        self._broadcast(Begin())
        if job.with_events:
            self._events.begin()

    def _environment(self, name: str, device: KnownDevice, identity: Identity) -> dict[str, str]:
        return {
            **identity.environment(),
            "RANK": str(device.rank),
            "WORLD_SIZE": str(len(self._devices)),
            "LOCAL_RANK": "0",
            "MASTER_ADDR": self._devices[next(iter(self._devices))].address or "",
            "MASTER_PORT": str(MASTER_PORT),
            "OMP_NUM_THREADS": str(math.ceil(device.spec.cpus or os.cpu_count() or 1)),
            "PYTHONUNBUFFERED": "1",
            "TESTBED_DEVICE": name,
            "CONTROL_ENDPOINT": self._programs_endpoint(identity),
            "TESTBED_CPUS": "" if device.spec.cpus is None else f"{device.spec.cpus:g}",
            "TESTBED_MEMORY_MB": "" if device.spec.memory_mb is None else str(device.spec.memory_mb),
        }

    def _programs_endpoint(self, identity: Identity) -> str:
        """Return where the first device's program may listen to the others beside the data network."""
        first = self._devices[next(iter(self._devices))]
        address = f"tcp://{first.control_address}:{PROGRAMS_PORT}" if first.control_address else ""
        return self._runtime.programs_endpoint(identity) or address

    def _stop_and_collect(self) -> None:
        """End what still runs and take in the files that the programs left."""
        self._events.stop()
        for name, device in self._devices.items():
            running = (device.started and device.exited is None) or device.state == "returning"
            if running and name not in self._runtime.exited():
                self._mailbox.send(name, Stop(grace_s=STOP_GRACE_S))
        deadline = time.monotonic() + COLLECT_TIMEOUT_S
        while time.monotonic() < deadline:
            gone = self._runtime.exited()
            if all(device.collected or not device.started or name in gone for name, device in self._devices.items()):
                break
            self._pump(stopping=True)
        else:
            lacking = self._lacking_text(lambda device: device.collected or not device.started)
            self._display.say(f"files of {lacking} did not all arrive within {COLLECT_TIMEOUT_S:g} s")
        self._record.merge_timelines()

    # Messages

    def _wait(self, done: Callable[[], bool], timeout_s: float | None, complaint: Callable[[], str]) -> None:
        """Handle messages until `done`; after `timeout_s` raise DeviceError with `complaint`."""
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise DeviceError(f"{complaint()} within {timeout_s:g} s")
            self._pump()
            self._check_agents()

    def _pump(self, *, stopping: bool = False) -> None:
        """Handle the messages that are there, waiting up to `POLL_MS` for the first."""
        now = time.monotonic()
        if now - self._pinged_at > PING_PERIOD_S:
            if now - self._pinged_at > SILENCE_LIMIT_S / 2:  # we were the silent ones
                for device in self._devices.values():
                    device.heard_at = now
            self._pinged_at = now
            self._broadcast(Ping())
        self._events.take_news()
        for name, message in self._mailbox.receive(POLL_MS):
            self._events.take_news()
            self._devices[name].heard_at = time.monotonic()
            self._handle(name, self._devices[name], message, stopping=stopping)

    def _handle(self, name: str, device: KnownDevice, message: AgentMessage, *, stopping: bool) -> None:
        if device.state == "down" and not isinstance(message, Hello | Log | Row | Mark):
            return  # of the life that has ended
        match message:
            case Hello():
                self._events.welcome(name, message)
            case Shaped(mechanism=mechanism):
                device.shaped, device.shaping, device.mechanism = True, False, mechanism
                self._events.shaped(name)
            case Started(user=user):
                device.started, device.user = True, user
                self._events.started(name)
            case Log(stream=stream, line=line):
                self._record.log(name, line)
                if stream == "stdout" and name in self._printed and (found := self._printed[name].take(line)):
                    self._record.row("summary", found)
            case Row(table=table, row=row):
                self._record.row(table, row)
                if table == "events" and row["source"] is None:
                    device.note_event(row["action"])
            case Mark(name=mark, links=links):
                self._record_mark(name, mark, links)
            case Progress(label=label, done=done, total=total):
                self._display.progress(label, done, total)
            case Barrier(name=barrier):
                self._reach(name, barrier)
            case Counters(links=links):
                device.counters = links
            case File(path=path, data=data):
                self._record.file(name, path, data)
            case Exited():
                device.exited = message
                if message.code != 0 and not stopping and not message.by_event:
                    raise DeviceError(self._describe_exit(name, message))
                if not stopping:
                    self._check_barriers()
            case Collected(left_out=left_out):
                device.collected = True
                self._report_left_out(name, left_out)
            case Again(left_out=left_out):
                device.asks = True
                self._report_left_out(name, left_out)
                if not self._may_wait:
                    device.asks = False
                    self._mailbox.send(name, Next(more=False))
                elif not stopping:
                    self._check_barriers()
            case Failed(error=error, exit_code=exit_code):
                raise (UnsupportedError if exit_code == UnsupportedError.exit_code else DeviceError)(
                    f"device {name}: {error}"
                )
            case Beat():
                pass

    def _report_left_out(self, name: str, left_out: tuple[str, ...]) -> None:
        if left_out:
            self._record.log(name, f"[not collected: {', '.join(left_out)}]")
            self._display.say(f"{name} left files that were not collected: {', '.join(left_out)}")

    def _record_mark(self, name: str, mark: str, links: Mapping[str, LinkCount]) -> None:
        for source, count in links.items():
            self._record.row("marks", {"mark": mark, "source": source, "destination": name, **count.model_dump()})

    def _reach(self, name: str, barrier: str) -> None:
        waiting = self._barriers.setdefault(barrier, set())
        waiting.add(name)
        if len(waiting) == len(self._devices):
            del self._barriers[barrier]
            self._broadcast(BarrierOpen(name=barrier))
        self._check_barriers()

    def _leave_barriers(self, name: str) -> None:
        """Forget that a device waits, whose program is gone."""
        for waiting in self._barriers.values():
            waiting.discard(name)
        self._check_barriers()

    def _check_barriers(self) -> None:
        """Raise DeviceError where a device waits for one that has ended."""
        ended = [name for name, device in self._devices.items() if device.exited is not None or device.asks]
        for barrier, waiting in self._barriers.items():
            if ended and waiting:
                raise DeviceError(
                    f"device {min(waiting)} waits at barrier {barrier!r}, but {', '.join(ended)} has ended"
                )

    def _describe_exit(self, name: str, exited: Exited) -> str:
        how = f"exit code {exited.code}" if exited.code >= 0 else f"signal {-exited.code}"
        if self._runtime.out_of_memory(name):
            how += f" (out of memory: the device has {self._devices[name].spec.memory_mb} MB)"
        said = "\n".join(f"    {line}" for line in exited.last_lines) or "    (it printed nothing)"
        return f"device {name}: the program ended with {how}; its last lines:\n{said}"

    def _check_agents(self) -> None:
        for name, device in self._devices.items():
            silent_s = time.monotonic() - device.heard_at
            answers = device.address is not None and device.state == "up" and not device.shaping
            if answers and silent_s > SILENCE_LIMIT_S:
                raise DeviceError(f"device {name}: its agent must answer, got nothing for {SILENCE_LIMIT_S:g} s")
        self._events.check()
        exited = self._runtime.exited()
        self._events.take_news()
        for name, code in exited.items():
            if self._devices[name].state not in ("down", "returning"):
                said = "\n".join(f"    {line}" for line in self._runtime.agent_log(name).splitlines()[-20:])
                raise DeviceError(f"device {name}: its agent ended with status {code}; its last lines:\n{said}")

    def _lacking(self, has: Callable[[KnownDevice], bool]) -> list[str]:
        return [name for name, device in self._devices.items() if not has(device)]

    def _refusals(self) -> str:
        """Say how many calls came with other keys, if any."""
        refused = self._mailbox.dropped["refused"]
        return f" ({refused} calls with other keys were refused)" if refused else ""

    def _lacking_text(self, has: Callable[[KnownDevice], bool]) -> str:
        return ", ".join(self._lacking(has))

    def _broadcast(self, message: ControllerMessage) -> None:
        for name, device in self._devices.items():
            if device.address is not None and device.state != "down":
                self._mailbox.send(name, message)
