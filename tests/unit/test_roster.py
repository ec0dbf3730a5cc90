"""Agents get their names by word or in order of arrival; too many of them and limits that differ are faults."""

from testbed.protocol.from_agents import Beat, Hello, Limits
from testbed.roster import Roster
from testbed.scenario import DeviceSpec

SPEC = DeviceSpec(cpus=0.4, memory_mb=3000, accelerator="cpu")
AS_ASKED = Limits(cpus=0.4, memory_bytes=3_000_000_000 // 4096 * 4096)


def hello(device: str | None = None, limits: Limits | None = AS_ASKED) -> Hello:
    return Hello(device=device, address="10.0.0.1", pid=1, life="a", limits=limits if device is None else None)


def test_named_agents_are_who_they_say() -> None:
    roster = Roster(["d0", "d1"])
    assert roster.recognise(b"d1", hello("d1")) == "d1"
    assert roster.connection("d1") == b"d1"
    assert roster.nameless == {}


def test_nameless_agents_are_named_in_order_of_arrival() -> None:
    roster = Roster(["d0", "d1"])
    assert [roster.recognise(who, hello()) for who in (b"x", b"y", b"x")] == ["d0", "d1", "d0"]
    assert (roster.connection("d0"), roster.connection("d1")) == (b"x", b"y")
    assert roster.recognise(b"y", Beat()) == "d1"
    assert roster.faults({"d0": SPEC, "d1": SPEC}) == []


def test_stranger_is_not_recognised() -> None:
    roster = Roster(["d0"])
    assert roster.recognise(b"x", Beat()) is None
    assert roster.recognise(b"x", hello("d7")) is None


def test_too_many_agents_are_a_fault() -> None:
    roster = Roster(["d0", "d1"])
    names = [roster.recognise(who, hello()) for who in (b"x", b"y", b"z", b"z")]
    assert names == ["d0", "d1", None, None]
    assert roster.surplus == {b"z"}
    assert roster.faults({"d0": SPEC, "d1": SPEC}) == [
        "devices.count: must be the number of agents, got 2 and 3 agents; set DEVICES=2"
    ]


def test_limits_other_than_the_scenarios_are_faults() -> None:
    roster = Roster(["d0"])
    roster.recognise(b"x", hello(limits=Limits(cpus=0.5, memory_bytes=None)))
    cpus, memory = roster.faults({"d0": SPEC})
    assert cpus.startswith("d0: cpus must be 0.4 as in the scenario, got 0.5; set CPU_QUOTA_US=4000,")
    assert memory.startswith("d0: memory must be 2999996416 bytes as in the scenario, got None; set MEMORY_MB=3000,")


def test_limits_that_the_scenario_does_not_want_are_faults() -> None:
    roster = Roster(["d0"])
    roster.recognise(b"x", hello())
    cpus, memory = roster.faults({"d0": DeviceSpec(cpus=None, memory_mb=None, accelerator="cpu")})
    assert "set CPU_QUOTA_US=-1," in cpus
    assert "set MEMORY_MB=0," in memory
