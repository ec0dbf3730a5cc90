"""With keys: a stranger reads and injects nothing, and whoever has other keys is told so soon."""

import contextlib
import logging
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from test_transport_zeromq import BYTES_RECEIVED_AT, TCP_INFO_BYTES, pair_connection
from transport_worlds import connect_zeromq, free_port, in_threads

from astra.environment import Environment
from astra.errors import PeerTimeoutError, TransportError
from astra.joining import with_keys
from astra.overhead import bytes_on_links
from astra.traffic import PlannedMessage
from astra.transport import Tag, framed_size, zeromq
from astra.transport.curve import Gate
from astra.transport.framing import CURVE_FRAME_BYTES
from astra.transport.keys import Keys, make_keys
from astra.transport.rendezvous import GRACE_S
from astra.transport.zeromq import ZeroMqTransport

PATIENCE_S = 10.0
BRIEF_S = 0.3
SOON_S = 3.0
"""Within which a refusal is told: handshakes on loopback take milliseconds, the machine may be busy."""
CODES = Tag(0, 0, "codes")
LOOPBACK = "127.0.0.1"


@pytest.fixture
def pair() -> Iterator[list[ZeroMqTransport]]:
    transports = connect_zeromq(2, with_keys=True)
    yield transports  # type: ignore[misc]
    for transport in transports:
        transport.close(abort=True)


def connect(calls: list[tuple[int, int, Keys | None]], timeout_s: float) -> list[object]:
    """Connect (rank, world size, keys) side by side; a failure stands in the place of its transport."""
    port = free_port()
    made = in_threads(
        [lambda call=call: zeromq.connect(call[0], call[1], LOOPBACK, port, timeout_s, keys=call[2]) for call in calls]
    )
    for each in made:
        if isinstance(each, ZeroMqTransport):
            each.close(abort=True)
    return made


def endpoint_of(transport: ZeroMqTransport, peer: int) -> str:
    return transport._sockets[peer].get(zmq.LAST_ENDPOINT).decode().rstrip("\0")


@pytest.mark.parametrize("armed", ["nothing", "own key", "the public keys"])
def test_stranger_at_a_pair_reads_and_injects_nothing(pair: list[ZeroMqTransport], armed: str) -> None:
    first, second = pair
    keys = first._gate.keys
    assert keys is not None
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        public, secret = zmq.curve_keypair()
        if armed != "nothing":
            stranger.curve_publickey, stranger.curve_secretkey = public, secret
            stranger.curve_serverkey = keys.public[0] if armed == "the public keys" else public
        stranger.connect(endpoint_of(first, 1))
        for _ in range(20):
            with contextlib.suppress(zmq.Again):  # once refused, nobody is left to send to
                stranger.send(bytes(framed_size(320)), zmq.NOBLOCK)
            first.send(1, CODES, b"for rank 1 alone")
            assert bytes(second.receive(0, CODES, PATIENCE_S)) == b"for rank 1 alone"
        with pytest.raises(PeerTimeoutError):
            first.receive(1, CODES, BRIEF_S)
        assert not stranger.poll(int(BRIEF_S * 1000))
    assert (first.traffic.malformed, first.traffic.stale) == (0, 0)
    assert first._gate.refused == (armed == "the public keys")


def test_member_may_not_open_another_members_door() -> None:
    first, _, third = connect_zeromq(3, with_keys=True)
    assert isinstance(first, ZeroMqTransport)
    assert isinstance(third, ZeroMqTransport)
    with zmq.Context() as context, context.socket(zmq.DEALER) as impostor:
        impostor.linger = 0
        Gate(context, None).call(impostor, 0)
        keys = third._gate.keys
        assert keys is not None
        impostor.curve_serverkey, impostor.curve_secretkey = keys.public[0], keys.secret
        impostor.curve_publickey = keys.public[2]
        impostor.connect(endpoint_of(first, 1))
        impostor.send(b"as if from rank 1")
        deadline_s = time.monotonic() + PATIENCE_S
        while not first._gate.refused and time.monotonic() < deadline_s:
            time.sleep(0.01)
    assert first._gate.refused == 1
    assert not first._sockets[1].poll(int(BRIEF_S * 1000))
    for transport in (first, _, third):
        transport.close(abort=True)


def test_stranger_at_the_rendezvous_learns_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    port, keys = free_port(), make_keys(2)

    def stranger() -> object:
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
            dealer.curve_serverkey = keys[0].public[0]
            dealer.connect(f"tcp://{LOOPBACK}:{port}")
            dealer.send(b"\x95\xa5hello\x02\x01\xa7127.0.0\x80")
            return dealer.poll(1000)

    def guest() -> object:
        time.sleep(0.5)
        return zeromq.connect(1, 2, LOOPBACK, port, PATIENCE_S, keys=keys[1])

    made = in_threads([lambda: zeromq.connect(0, 2, LOOPBACK, port, PATIENCE_S, keys=keys[0]), stranger, guest])
    assert made[1] == 0, "nothing came back"
    for each in (made[0], made[2]):
        assert isinstance(each, ZeroMqTransport), made
        each.close(abort=True)
    refusals = [record for record in caplog.records if "refused a connection from 127.0.0.1" in record.getMessage()]
    assert [record.levelno for record in refusals] == [logging.WARNING]


def test_rank_cannot_call_as_another() -> None:
    """Rank 2's keys, and the claim to be rank 1."""
    keys = make_keys(3)
    made = connect([(0, 3, keys[0]), (1, 3, keys[2])], 1.0)
    assert isinstance(made[0], PeerTimeoutError)
    assert "rank 0 waited 1 s for ranks 1, 2 to show up" in str(made[0])


@pytest.mark.parametrize("whose", ["another set", "none", "only the guest's"])
def test_other_keys_are_refused_soon_and_said_so(whose: str) -> None:
    ours, others = make_keys(2), make_keys(2)
    host = None if whose == "only the guest's" else ours[0]
    guest = None if whose == "none" else others[1]
    port = free_port()
    took_s: list[float] = []

    def call() -> object:
        began_s = time.monotonic()
        try:
            return zeromq.connect(1, 2, LOOPBACK, port, PATIENCE_S, keys=guest)
        finally:
            took_s.append(time.monotonic() - began_s)

    made = in_threads([lambda: zeromq.connect(0, 2, LOOPBACK, port, SOON_S, keys=host), call])
    assert type(made[1]) is TransportError
    assert "rank 1: keys must be of one set on all ranks, got a refusal from rank 0" in str(made[1])
    assert took_s[0] < SOON_S + GRACE_S
    assert isinstance(made[0], PeerTimeoutError)
    assert "that called had not the right keys)" in str(made[0])


def test_key_that_rank_0_does_not_know_is_refused() -> None:
    ours = make_keys(2)
    stranger = Keys(make_keys(1)[0].secret, ours[1].public)
    made = connect([(0, 2, ours[0]), (1, 2, stranger)], SOON_S)
    assert "got a refusal from rank 0" in str(made[1])
    assert "(1 that called had not the right keys)" in str(made[0])


def relay(listening: socket.socket, port: int, seen: bytearray) -> None:
    """Carry one connection on to `port`, and keep what the caller sends."""

    def carry(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(4096):
                kept += piece
                target.sendall(piece)

    caller, _ = listening.accept()
    with caller, socket.create_connection((LOOPBACK, port)) as callee:
        back = threading.Thread(target=carry, args=(callee, caller, bytearray()), daemon=True)
        back.start()
        carry(caller, callee, seen)


@pytest.mark.parametrize("with_keys", [False, True])
def test_nothing_is_readable_on_the_wire_with_keys(with_keys: bool) -> None:
    said = b"a secret that would be seen in plain text"
    keys = make_keys(2) if with_keys else [None, None]
    seen = bytearray()
    with zmq.Context() as context, zmq.Context() as other, socket.create_server((LOOPBACK, 0)) as listening:
        gate, others = Gate(context, keys[0]), Gate(other, keys[1])
        with context.socket(zmq.DEALER) as bound, other.socket(zmq.DEALER) as caller:
            bound.linger = caller.linger = 0
            gate.serve(bound, (1,))
            port = bound.bind_to_random_port(f"tcp://{LOOPBACK}")
            threading.Thread(target=relay, args=(listening, port, seen), daemon=True).start()
            others.call(caller, 0)
            caller.connect(f"tcp://{LOOPBACK}:{listening.getsockname()[1]}")
            caller.send(said)
            assert bound.poll(int(PATIENCE_S * 1000))
            assert bound.recv() == said
        gate.close()
        others.close()
    assert len(seen) > len(said)
    assert (said in seen) is not with_keys


def test_curve_adds_what_it_is_said_to_add() -> None:
    assert framed_size(320, curve=True) - framed_size(320) == CURVE_FRAME_BYTES


def test_process_with_keys_ends_without_close(tmp_path: Path) -> None:
    keys = make_keys(2)
    keys[1].write(tmp_path / "keys.json")
    port = free_port()
    script = (
        "from pathlib import Path\nfrom astra.transport import zeromq\nfrom astra.transport.keys import Keys\n"
        f"keys = Keys.read(Path({str(tmp_path / 'keys.json')!r}), 1, 2)\n"
        f"transport = zeromq.connect(1, 2, {LOOPBACK!r}, {port}, 20, keys=keys)\n"
    )
    peer = subprocess.Popen([sys.executable, "-c", script])
    transport = zeromq.connect(0, 2, LOOPBACK, port, 2 * PATIENCE_S, keys=keys[0])
    assert peer.wait(PATIENCE_S) == 0
    transport.close(abort=True)


def test_expected_bytes_hold_what_curve_adds() -> None:
    """One message of codes each way: still a packet, 33 bytes longer."""
    messages = [PlannedMessage(0, 1, 320), PlannedMessage(1, 0, 320)]
    assert bytes_on_links(messages, curve=True) - bytes_on_links(messages) == 2 * CURVE_FRAME_BYTES


def test_packets_of_a_connection_with_keys_are_as_many_bytes_as_expected(pair: list[ZeroMqTransport]) -> None:
    first, second = pair
    port = int(endpoint_of(first, 1).rpartition(":")[2])
    with pair_connection({port}) as accepted:
        for layer, size in enumerate([0, 320, 65_536, 786_432]):
            before = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
            second.send(0, Tag(0, layer, "codes"), bytes(size))
            first.receive(1, Tag(0, layer, "codes"), PATIENCE_S)
            after = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
            received = [struct.unpack_from("=Q", info, BYTES_RECEIVED_AT)[0] for info in (before, after)]
            assert received[1] - received[0] == framed_size(size, curve=True)


def test_ranks_meet_with_the_keys_that_the_environment_names(tmp_path: Path) -> None:
    port = free_port()
    for rank, keys in enumerate(make_keys(2)):
        keys.write(tmp_path / f"{rank}.json")
    ranks = [Environment(rank, 2, LOOPBACK, port, tmp_path, curve_keys=tmp_path / f"{rank}.json") for rank in range(2)]
    made = in_threads(
        [
            lambda rank=rank: with_keys(zeromq.connect, ranks[rank], (0, 1))(rank, 2, LOOPBACK, port, PATIENCE_S)
            for rank in range(2)
        ]
    )
    for each in made:
        assert isinstance(each, ZeroMqTransport), made
        assert each._gate.keys is not None
        each.close(abort=True)
