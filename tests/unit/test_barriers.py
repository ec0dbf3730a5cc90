"""Barriers: they open for all at once, and waiting in vain is an error."""

import pytest
from agent_worlds import agents_of

from testbed.barriers import Barriers
from testbed.errors import DeviceError
from testbed.protocol.from_agents import Exited
from testbed.protocol.to_agents import BarrierOpen

ENDED = Exited(code=0, last_lines=())


def test_barrier_opens_for_all_once_the_last_device_is_there() -> None:
    agents, outbox = agents_of(2)
    barriers = Barriers(agents)
    barriers.reach("d1", "x")
    barriers.reach("d0", "another")
    assert not outbox.sent
    barriers.reach("d0", "x")
    assert outbox.sent == [("d0", BarrierOpen(name="x")), ("d1", BarrierOpen(name="x"))]


def test_barrier_may_be_met_again() -> None:
    agents, outbox = agents_of(1)
    barriers = Barriers(agents)
    for _ in range(2):
        barriers.reach("d0", "x")
    assert len(outbox.sent) == 2


@pytest.mark.parametrize("left", [{"exited": ENDED}, {"asks": True}], ids=["ended", "asks for more"])
def test_waiting_for_a_device_that_is_done_is_an_error(left: dict[str, object]) -> None:
    agents, _ = agents_of(3)
    barriers = Barriers(agents)
    barriers.reach("d2", "x")
    for name, value in left.items():
        setattr(agents.devices["d1"], name, value)
    with pytest.raises(DeviceError, match="device d2 waits at barrier 'x', but d1 has ended"):
        barriers.check()


def test_device_whose_program_is_gone_waits_no_more() -> None:
    agents, _ = agents_of(2)
    barriers = Barriers(agents)
    barriers.reach("d0", "x")
    barriers.leave("d0")
    agents.devices["d1"].exited = ENDED
    barriers.check()
