"""Control messages: every one survives the wire, and anything else is refused, never a crash."""

from typing import get_args

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from testbed.links import DeviceRules, LinkRule
from testbed.loss import Bernoulli, GilbertElliott, Recorded
from testbed.protocol import from_agents, to_agents
from testbed.protocol.calls import DeviceCall
from testbed.protocol.frames import decode_agent, decode_controller, encode
from testbed.protocol.from_agents import AgentMessage
from testbed.protocol.to_agents import ControllerMessage
from testbed.schedule import Change, DeviceEvent, LinkEvent, Schedule
from testbed.traces import Course, Step

SCHEDULE = Schedule(
    links=(
        LinkEvent(0, 1.0, ("d1", "d2"), change=Change(2e6, loss=GilbertElliott(0.01, 0.3, 0.8))),
        LinkEvent(1, 0.5, ("d1",), course=Course((0.0, 1.0), (Step(1e6), Step(0.0, loss=0.1)), 2.0), loop=True),
        LinkEvent(2, 2.0, ("d1",), cut=True),
    ),
    device=(DeviceEvent(3, 1.0, "kill"),),
)
COUNT = from_agents.LinkCount(bytes=1, packets=2, lost=3, overflowed=4)
RULES = DeviceRules(
    device="d0",
    address="10.77.0.1",
    rules=(
        LinkRule("d1", "10.77.0.2", 1e7, 0.0, 0.0, 0.2, Bernoulli(0.01), 7),
        LinkRule("d2", "10.77.0.3", 1e7, 0.0, 0.0, 0.2, GilbertElliott(0.01, 0.3, 0.8), 7),
        LinkRule("d3", "10.77.0.4", 1e7, 0.0, 0.0, 0.2, Recorded("0010"), 7),
    ),
    uplink_bps=None,
)
FROM_AGENT = [
    from_agents.Hello(device="d0", address="10.77.0.1", pid=1, life="a"),
    from_agents.Shaped(mechanism={"rate": "htb"}),
    from_agents.Started(pid=1, user="root"),
    from_agents.Log(stream="stdout", line="é"),
    from_agents.Row(table="summary", row={"a": 1, "b": 1.5, "c": None, "d": True, "e": "x"}),
    from_agents.Mark(name="m", links={"d1": COUNT}),
    from_agents.Progress(label="x", done=1, total=2),
    from_agents.Barrier(name="b"),
    from_agents.Counters(links={"d1": COUNT}),
    from_agents.File(path="a/b", data=b"\x00\xff", last=True),
    from_agents.Exited(code=-9, last_lines=("a", "b")),
    from_agents.Collected(left_out=("c",)),
    from_agents.Again(left_out=("c",)),
    from_agents.Failed(error="no", exit_code=2),
    from_agents.Beat(),
]
FROM_CONTROLLER = [
    to_agents.Shape(rules=RULES),
    to_agents.Begin(),
    to_agents.Start(command=("a",), environment={}, config="{}", folder="/", schedule=SCHEDULE),
    to_agents.Start(command=("a", "b"), environment={"A": "1"}, config="{}", folder="/", uid=1, gid=2),
    to_agents.BarrierOpen(name="b"),
    to_agents.ReadCounters(),
    to_agents.Next(more=True),
    to_agents.Stop(grace_s=0.1),
    to_agents.Ping(),
    to_agents.Hold(),
    to_agents.Bye(),
]


def test_examples_cover_every_message() -> None:
    assert {type(message) for message in FROM_AGENT} == set(get_args(AgentMessage))
    assert {type(message) for message in FROM_CONTROLLER} == set(get_args(ControllerMessage))


@pytest.mark.parametrize("message", FROM_AGENT, ids=lambda message: message.kind)
def test_agent_message_survives_the_wire(message: AgentMessage) -> None:
    assert decode_agent(encode(message)) == message


@pytest.mark.parametrize("message", FROM_CONTROLLER, ids=lambda message: message.kind)
def test_controller_message_survives_the_wire(message: ControllerMessage) -> None:
    assert decode_controller(encode(message)) == message


@given(st.binary(max_size=200))
def test_decode_refuses_random_bytes(frame: bytes) -> None:
    for decode in (decode_agent, decode_controller):
        with pytest.raises(ValueError):
            decode(frame)


@pytest.mark.parametrize(
    "content",
    [
        [2, {"kind": "ping"}],
        [1, {"kind": "unknown"}],
        [1, {"kind": "beat", "extra": 1}],
        [1, {"kind": "row", "table": "../x", "row": {}}],
        [1, {"kind": "exited"}],
        [1],
        7,
        {"kind": "beat"},
    ],
)
def test_decode_refuses_wrong_content(content: object) -> None:
    with pytest.raises(ValueError):
        decode_agent(msgpack.packb(content))


def test_device_call_refuses_unknown_op() -> None:
    with pytest.raises(ValidationError):
        DeviceCall.validate_json(b'{"op": "explode"}')
