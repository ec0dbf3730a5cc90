"""What arrives at controller, agent and device socket, damaged: refused, counted, never a crash."""

import asyncio
import contextlib
import json
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from fuzzing import damage
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_protocol import FROM_AGENT, FROM_CONTROLLER
from transport_worlds import free_port

from testbed.device_socket import DeviceSocket
from testbed.keys import make_control_keys
from testbed.mailbox import Mailbox
from testbed.protocol.calls import Call, DeviceCall
from testbed.protocol.frames import decode_agent, decode_controller, encode
from testbed.protocol.from_agents import Hello

NUM_FRAMES = 100_000
NUM_LIVE = 2_000
PATIENCE_S = 20.0
CALLS = [
    b'{"op": "row", "table": "summary", "row": {"a": 1, "b": null, "c": "x"}}',
    b'{"op": "mark", "name": "begin"}',
    b'{"op": "progress", "label": "x", "done": 1, "total": 2}',
    b'{"op": "barrier", "name": "x"}',
]
FIELDS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("decode", "valid", "refusal"),
    [
        (decode_agent, [encode(message) for message in FROM_AGENT], ValueError),
        (decode_controller, [encode(message) for message in FROM_CONTROLLER], ValueError),
        (DeviceCall.validate_json, CALLS, ValidationError),
    ],
    ids=["controller", "agent", "device socket"],
)
def test_decoder_reads_or_refuses_random_and_damaged_frames(
    decode: Callable[[bytes], object], valid: list[bytes], refusal: type[Exception]
) -> None:
    rng = random.Random(5)
    for number in range(NUM_FRAMES):
        with contextlib.suppress(refusal):
            decode(rng.randbytes(rng.randint(0, 60)) if number % 2 else damage(rng.choice(valid), rng))


@settings(max_examples=200)
@given(st.sampled_from([*FROM_AGENT, *FROM_CONTROLLER]), st.text(max_size=8), FIELDS)
def test_decoder_reads_or_refuses_fields_of_any_type(message: Any, name: str, value: object) -> None:
    fields = message.model_dump()
    fields[name if name not in fields and len(name) % 2 else random.Random(len(name)).choice(sorted(fields))] = value
    for decode in (decode_agent, decode_controller):
        with contextlib.suppress(ValueError):
            decode(msgpack.packb([1, fields]))


def test_mailbox_lives_through_junk_and_hears_its_agent() -> None:
    """Strangers' frames and raw bytes on a port without keys, then an agent."""
    rng, lines = random.Random(3), list[str]()
    box = Mailbox(["d0"], lines.append)
    port = free_port()
    box.bind(f"tcp://127.0.0.1:{port}")
    sent = 0
    try:
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger, context.socket(zmq.DEALER) as agent:
            stranger.linger = agent.linger = 0
            stranger.connect(f"tcp://127.0.0.1:{port}")
            for _ in range(NUM_LIVE):
                junk = [rng.randbytes(rng.randint(0, 60)) for _ in range(rng.randint(1, 3))]
                stranger.send_multipart(junk)
                sent += 1
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", port)) as raw:
                    raw.sendall(rng.randbytes(200))
            agent.identity = b"d0"
            agent.connect(f"tcp://127.0.0.1:{port}")
            agent.send(encode(Hello(device="d0", address="10.0.0.1", pid=1, life="a")))
            deadline_s, names = time.monotonic() + PATIENCE_S, list[str]()
            while (box.dropped.total() < sent or not names) and time.monotonic() < deadline_s:
                names += [name for name, _ in box.receive(50)]
            assert names == ["d0"]
            assert box.dropped.total() >= sent, "raw bytes may begin like a message of an old ZeroMQ"
            assert len(lines) == len(box.dropped), "each kind once"
    finally:
        box.close()


def test_mailbox_with_keys_hears_none_of_it() -> None:
    rng, lines = random.Random(3), list[str]()
    controller, _ = make_control_keys()
    box = Mailbox(["d0"], lines.append, controller)
    port = free_port()
    box.bind(f"tcp://127.0.0.1:{port}")
    try:
        for _ in range(50):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as raw:
                raw.sendall(rng.randbytes(200))
        assert list(box.receive(200)) == []
        assert box.dropped["malformed"] == 0
    finally:
        box.close()


def test_device_socket_counts_what_it_refuses_and_goes_on(tmp_path: Path) -> None:
    async def handler(call: Call) -> dict[str, Any]:
        return {}

    async def use() -> tuple[int, int, Any]:
        server = DeviceSocket(tmp_path / "s", handler)
        await server.open(uid=None)
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        rng, refused = random.Random(9), 0
        for _ in range(NUM_LIVE):
            writer.write(damage(rng.choice(CALLS), rng).replace(b"\n", b" ") + b"\n")
            refused += not json.loads(await asyncio.wait_for(reader.readline(), PATIENCE_S))["ok"]
        writer.write(CALLS[0] + b"\n")
        last = json.loads(await reader.readline())
        writer.close()
        counted = server.refused
        await server.close()
        return refused, counted, last

    refused, counted, last = asyncio.run(use())
    assert refused == counted > NUM_LIVE / 4
    assert last == {"ok": True}
