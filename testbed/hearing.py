"""What the agents of a run say, and where it goes.

    Row, Mark, Log, File ──> Record      Progress ──> Display      Barrier ──> Barriers
    Hello, Shaped, Started, Counters, Exited, Collected, Again ──> KnownDevice, and DeviceEvents of one that comes back

A program that fails, and an agent that could not do what it was told, become a DeviceError. Waits for nothing, and says
nothing of its own accord; its only words are answers.
"""

from collections.abc import Mapping

from testbed.barriers import Barriers
from testbed.device_events import DeviceEvents
from testbed.display import Display
from testbed.errors import DeviceError, UnsupportedError
from testbed.known_agents import KnownAgents
from testbed.known_device import KnownDevice
from testbed.printed import PrintedRows
from testbed.protocol.from_agents import (
    Again,
    AgentMessage,
    Barrier,
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
from testbed.protocol.to_agents import Next
from testbed.record import Record
from testbed.runtimes import Runtime

__all__ = ["Hearing"]


class Hearing:
    """The receiving end of a fleet; `turn_to` comes before the first message."""

    def __init__(self, agents: KnownAgents, barriers: Barriers, runtime: Runtime, display: Display):
        self._agents, self._barriers = agents, barriers
        self._runtime, self._display = runtime, display
        self._printed: dict[str, PrintedRows] = {}
        self.may_wait = False
        """Whether a program that asks if it shall do the same once more is left waiting; else it is told to end."""

    def turn_to(self, record: Record, events: DeviceEvents) -> None:
        """Let what comes be recorded there."""
        self._record, self._events = record, events

    def expect_summary(self, columns: Mapping[str, str]) -> None:
        """Look for rows of the summary in what programs print from now on; see `PrintedRows`."""
        self._printed = {name: PrintedRows(name, columns) for name in self._agents.devices}

    def take(self, name: str, message: AgentMessage, *, stopping: bool) -> None:
        """Take in what the agent of a device says; while `stopping`, no end of a program is amiss.

        Raises DeviceError, and UnsupportedError where a device cannot do what it was told.
        """
        device = self._agents.devices[name]
        if device.state == "down" and not isinstance(message, Hello | Log | Row | Mark):
            return  # of the life that has ended
        match message:
            case Exited():
                device.exited = message
                if message.code != 0 and not stopping and not message.by_event:
                    raise DeviceError(self._describe_exit(name, message))
                if not stopping:
                    self._barriers.check()
            case Again(left_out=left_out):
                self._report_left_out(name, left_out)
                device.asks = self.may_wait
                if not self.may_wait:
                    self._agents.send(name, Next(more=False))
                elif not stopping:
                    self._barriers.check()
            case Failed(error=error, exit_code=exit_code):
                kind = UnsupportedError if exit_code == UnsupportedError.exit_code else DeviceError
                raise kind(f"device {name}: {error}")
            case _:  # one of these two knows it, and Beat has said all by being there
                self._take_state(name, device, message)
                self._take_report(name, device, message)

    def _take_state(self, name: str, device: KnownDevice, message: AgentMessage) -> None:
        """Take note of how far a device is."""
        match message:
            case Hello():
                self._events.welcome(name, message)
            case Shaped(mechanism=mechanism):
                device.shaped, device.shaping, device.mechanism = True, False, mechanism
                self._events.shaped(name)
            case Started(user=user):
                device.started, device.user = True, user
                self._events.started(name)
            case Counters(links=links):
                device.counters = links
            case Collected(left_out=left_out):
                device.collected = True
                self._report_left_out(name, left_out)

    def _take_report(self, name: str, device: KnownDevice, message: AgentMessage) -> None:
        """Keep or show what a program reports."""
        match message:
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
                self._barriers.reach(name, barrier)
            case File(path=path, data=data):
                self._record.file(name, path, data)

    def _record_mark(self, name: str, mark: str, links: Mapping[str, LinkCount]) -> None:
        for source, count in links.items():
            self._record.row("marks", {"mark": mark, "source": source, "destination": name, **count.model_dump()})

    def _report_left_out(self, name: str, left_out: tuple[str, ...]) -> None:
        if left_out:
            self._record.log(name, f"[not collected: {', '.join(left_out)}]")
            self._display.say(f"{name} left files that were not collected: {', '.join(left_out)}")

    def _describe_exit(self, name: str, exited: Exited) -> str:
        how = f"exit code {exited.code}" if exited.code >= 0 else f"signal {-exited.code}"
        if self._runtime.out_of_memory(name):
            how += f" (out of memory: the device has {self._agents.devices[name].spec.memory_mb} MB)"
        said = "\n".join(f"    {line}" for line in exited.last_lines) or "    (it printed nothing)"
        return f"device {name}: the program ended with {how}; its last lines:\n{said}"
