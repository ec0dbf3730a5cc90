"""What becomes of what agents say: in the record, in what is known of a device, or an error."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from agent_worlds import Outbox, agents_of

from testbed.barriers import Barriers
from testbed.device_events import DeviceEvents
from testbed.display import Display
from testbed.errors import DeviceError, UnsupportedError
from testbed.hearing import Hearing
from testbed.known_agents import KnownAgents
from testbed.protocol.from_agents import Again, Collected, Exited, Failed, LinkCount, Log, Mark, Row
from testbed.protocol.to_agents import Next
from testbed.record import Record
from testbed.runtimes import Runtime


class Surroundings:
    """Stands in for runtime and display."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.is_out_of_memory = False

    def out_of_memory(self, device: str) -> bool:
        return self.is_out_of_memory

    def say(self, line: str) -> None:
        self.said.append(line)


@dataclass
class World:
    """A hearing, and whatever it may reach."""

    hearing: Hearing
    agents: KnownAgents
    outbox: Outbox
    record: Record
    around: Surroundings


@pytest.fixture
def world(tmp_path: Path) -> World:
    agents, outbox = agents_of(2)
    around = Surroundings()
    hearing = Hearing(agents, Barriers(agents), cast(Runtime, around), cast(Display, around))
    record = Record.create(name="x", scenario="name: x\n", out=tmp_path / "out")
    hearing.turn_to(record, cast(DeviceEvents, None))
    return World(hearing, agents, outbox, record, around)


def test_program_that_fails_is_named_with_its_last_lines(world: World) -> None:
    said = r"device d1: the program ended with exit code 3; its last lines:\n    oh\n    no"
    with pytest.raises(DeviceError, match=said):
        world.hearing.take("d1", Exited(code=3, last_lines=("oh", "no")), stopping=False)
    world.around.is_out_of_memory = True
    with pytest.raises(DeviceError, match=r"signal 9 \(out of memory: the device has 100 MB\)"):
        world.hearing.take("d1", Exited(code=-9, last_lines=()), stopping=False)


@pytest.mark.parametrize(
    ("by_event", "stopping"), [(True, False), (False, True)], ids=["by an event", "while stopping"]
)
def test_program_that_was_killed_on_purpose_has_only_ended(world: World, by_event: bool, stopping: bool) -> None:
    world.hearing.take("d1", Exited(code=-9, last_lines=(), by_event=by_event), stopping=stopping)
    assert world.agents.devices["d1"].activity == ("killed" if by_event else "ended")


def test_device_that_is_down_says_nothing_more_of_its_life_but_what_it_measured_stays(world: World) -> None:
    world.agents.devices["d1"].state = "down"
    world.hearing.take("d1", Exited(code=1, last_lines=()), stopping=False)
    world.hearing.take("d1", Row(table="requests", row={"x": 1}), stopping=False)
    assert world.agents.devices["d1"].exited is None
    assert world.record.tables["requests"] == [{"x": 1}]


def test_program_that_asks_is_told_to_end_unless_it_may_wait(world: World) -> None:
    world.hearing.take("d0", Again(), stopping=False)
    assert (world.outbox.sent, world.agents.devices["d0"].asks) == ([("d0", Next(more=False))], False)
    world.hearing.may_wait = True
    world.hearing.take("d1", Again(), stopping=False)
    assert (len(world.outbox.sent), world.agents.devices["d1"].asks) == (1, True)


@pytest.mark.parametrize(("exit_code", "kind"), [(1, DeviceError), (2, UnsupportedError)])
def test_agent_that_could_not_obey_ends_the_run_as_it_says(world: World, exit_code: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="device d0: no"):
        world.hearing.take("d0", Failed(error="no", exit_code=exit_code), stopping=False)


def test_summary_is_read_from_stdout_only(world: World) -> None:
    world.hearing.expect_summary({"seconds": "end.seconds"})
    for stream in ("stderr", "stdout"):
        world.hearing.take("d0", Log(stream=stream, line='{"end": {"seconds": 1.5}}'), stopping=False)
    (row,) = world.record.tables["summary"]
    assert row["seconds"] == 1.5


def test_mark_has_a_row_for_each_link_that_ends_at_the_device(world: World) -> None:
    counts = {"d1": LinkCount(bytes=1, packets=2, lost=3, overflowed=4)}
    world.hearing.take("d0", Mark(name="begin", links=counts), stopping=False)
    ends = {"mark": "begin", "source": "d1", "destination": "d0"}
    assert world.record.tables["marks"] == [{**ends, "bytes": 1, "packets": 2, "lost": 3, "overflowed": 4}]


def test_files_that_were_not_collected_are_named(world: World) -> None:
    world.hearing.take("d0", Collected(left_out=("core",)), stopping=False)
    assert world.around.said == ["d0 left files that were not collected: core"]
    assert world.agents.devices["d0"].collected
