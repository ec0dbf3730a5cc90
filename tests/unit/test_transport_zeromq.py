"""What only real sockets can show: meeting, packets, killed and silent peers, leaving."""

import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from transport_worlds import connect_zeromq, free_port, in_threads

from astra.errors import PeerTimeoutError, TransportError
from astra.transport import Tag, framed_size, zeromq
from astra.transport.zeromq import ZeroMqTransport

PATIENCE_S = 10.0
SHORT_S = 0.5
CODES = Tag(0, 0, "codes")

TCP_INFO_BYTES = 256
BYTES_RECEIVED_AT = 128
DATA_SEGMENTS_IN_AT = 152
"""Offsets in the kernel's struct tcp_info (linux/tcp.h), which only ever grows at its end."""

PEER = """
import sys
from astra.transport import Tag, zeromq
rank, world_size, port = map(int, sys.argv[1:4])
transport = zeromq.connect(rank, world_size, "127.0.0.1", port, 20)
transport.send(0, Tag(0, 0, "codes"), b"hello")
{then}
"""


def connect_all(calls: list[tuple[int, int, int]], timeout_s: float) -> list[object]:
    """Connect (rank, world_size, port) side by side; a failure stands in the place of its transport."""
    return in_threads(
        [lambda call=call: zeromq.connect(call[0], call[1], "127.0.0.1", call[2], timeout_s) for call in calls]
    )


def close_all(results: list[object]) -> None:
    for result in results:
        if isinstance(result, ZeroMqTransport):
            result.close(abort=True)


@pytest.fixture
def pair() -> Iterator[list[ZeroMqTransport]]:
    transports = connect_zeromq(2)
    yield transports  # type: ignore[misc]
    close_all(list(transports))


@pytest.fixture
def peer_process() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def start_peer(started: list[subprocess.Popen[bytes]], then: str) -> ZeroMqTransport:
    """Connect rank 0 here to rank 1 in a process of its own."""
    port = free_port()
    started.append(subprocess.Popen([sys.executable, "-c", PEER.format(then=then), "1", "2", str(port)]))
    transport = zeromq.connect(0, 2, "127.0.0.1", port, PATIENCE_S * 2)
    assert bytes(transport.receive(1, CODES, PATIENCE_S)) == b"hello"
    return transport


def pair_connection(ports: set[int]) -> socket.socket:
    """Find the accepted end of the only connection between these two transports of this process."""
    for entry in Path("/proc/self/fd").iterdir():
        try:
            duplicate = os.dup(int(entry.name))
        except OSError:
            continue  # the descriptor of the listing itself
        try:
            found = socket.socket(fileno=duplicate)
        except OSError:
            os.close(duplicate)
            continue
        try:
            if found.family == socket.AF_INET and found.getsockname()[1] in ports and found.getpeername():
                return found
        except OSError:
            pass  # it listens: no peer
        found.close()
    raise AssertionError("no connection found")


def test_zeromq_messages_take_the_tcp_bytes_that_framed_size_tells(pair: list[ZeroMqTransport]) -> None:
    first, second = pair
    port = int(first._sockets[1].get(zmq.LAST_ENDPOINT).decode().rstrip("\0").rpartition(":")[2])
    with pair_connection({port}) as accepted:
        for number, size in enumerate([0, 1, 218, 219, 320, 65_536, 65_537, 786_432]):
            tag = Tag(0, number, "codes")
            before = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
            second.send(0, tag, bytes(size))
            first.receive(1, tag, PATIENCE_S)
            after = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
            received = [struct.unpack_from("=Q", info, BYTES_RECEIVED_AT)[0] for info in (before, after)]
            segments = [struct.unpack_from("=I", info, DATA_SEGMENTS_IN_AT)[0] for info in (before, after)]
            assert received[1] - received[0] == framed_size(size)
            assert size > 320 or segments[1] - segments[0] == 1


def test_zeromq_does_not_delay_small_messages(pair: list[ZeroMqTransport]) -> None:
    port = int(pair[0]._sockets[1].get(zmq.LAST_ENDPOINT).decode().rstrip("\0").rpartition(":")[2])
    with pair_connection({port}) as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_zeromq_drops_frames_of_strangers(pair: list[ZeroMqTransport]) -> None:
    first, second = pair
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.connect(first._sockets[1].get(zmq.LAST_ENDPOINT).decode().rstrip("\0"))
        stranger.send_multipart([b"two", b"parts"])
        stranger.send(bytes(framed_size(320)))
        stranger.send(bytes(1 << 20))  # too large: libzmq hangs up
        deadline = time.monotonic() + PATIENCE_S
        while first.traffic.malformed < 3 and time.monotonic() < deadline:
            with pytest.raises(PeerTimeoutError):
                first.receive(1, CODES, 0.05)
    assert first.traffic.malformed == 3
    second.send(0, CODES, b"friend")
    assert bytes(first.receive(1, CODES, PATIENCE_S)) == b"friend"


def test_rendezvous_names_the_ranks_that_never_showed_up() -> None:
    port = free_port()
    results = connect_all([(0, 4, port), (2, 4, port)], SHORT_S)
    message = f"rendezvous at 127.0.0.1:{port}: rank 0 waited 0.5 s for ranks 1, 3 to show up"
    assert isinstance(results[0], PeerTimeoutError)
    assert message in str(results[0])
    assert isinstance(results[1], PeerTimeoutError)
    assert str(results[1]).startswith("rank 2 heard from rank 0: " + message)


def test_rendezvous_names_rank_0_when_it_is_not_there() -> None:
    port = free_port()
    with pytest.raises(PeerTimeoutError, match=rf"rank 1 waited 2\.1 s for rank 0 at 127\.0\.0\.1:{port}; see whether"):
        zeromq.connect(1, 2, "127.0.0.1", port, 0.1)


def test_rendezvous_waits_for_a_rank_0_that_is_late() -> None:
    port = free_port()

    def late() -> object:
        time.sleep(SHORT_S)
        return zeromq.connect(0, 2, "127.0.0.1", port, PATIENCE_S)

    results = in_threads([late, lambda: zeromq.connect(1, 2, "127.0.0.1", port, PATIENCE_S)])
    close_all(results)
    assert all(isinstance(result, ZeroMqTransport) for result in results), results


def test_rendezvous_refuses_another_world_size_on_both_sides() -> None:
    port = free_port()
    results = connect_all([(0, 2, port), (1, 3, port)], PATIENCE_S)
    fault = "WORLD_SIZE must be 2 as on rank 0, got 3 on rank 1"
    for result in results:
        assert type(result) is TransportError
        assert fault in str(result)


def test_rendezvous_refuses_a_rank_that_comes_twice_on_all_sides() -> None:
    port = free_port()
    results = connect_all([(0, 3, port), (1, 3, port), (1, 3, port)], PATIENCE_S)
    for result in results:
        assert type(result) is TransportError
        assert "RANK must be different on every device, got 1 twice" in str(result)


def test_rendezvous_drops_messages_of_strangers(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()

    def stranger() -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.connect(f"tcp://127.0.0.1:{port}")
            for junk in (b"", b"GET / HTTP/1.1", b"\x93\x01\x02\x03", b"\x81\x90\x90"):
                dealer.send(junk)
            dealer.send_multipart([b"two", b"parts"])
            time.sleep(SHORT_S)

    def guest() -> object:
        time.sleep(SHORT_S)
        return zeromq.connect(1, 2, "127.0.0.1", port, PATIENCE_S)

    results = in_threads([lambda: zeromq.connect(0, 2, "127.0.0.1", port, PATIENCE_S), stranger, guest])
    close_all(results)
    assert isinstance(results[0], ZeroMqTransport), results
    assert len([record for record in caplog.records if "not of a rendezvous" in record.getMessage()]) == 1


def test_rendezvous_says_so_when_its_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(TransportError, match=f"rank 0: MASTER_PORT must be free on rank 0, got {port}"):
            zeromq.connect(0, 2, "127.0.0.1", port, 1)


def test_rendezvous_says_so_when_the_master_is_unknown() -> None:
    with pytest.raises(TransportError, match=r"rank 1: MASTER_ADDR must be an IPv4 address or name .* got 'no host'"):
        zeromq.connect(1, 2, "no host", 1, 1)


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0), (0, 257)])
def test_rendezvous_refuses_impossible_ranks(rank: int, world_size: int) -> None:
    with pytest.raises(TransportError, match=f"WORLD_SIZE at most 256, got {rank} of {world_size}"):
        zeromq.connect(rank, world_size, "127.0.0.1", 1, 1)


def test_zeromq_survives_a_killed_peer(peer_process: list[subprocess.Popen[bytes]]) -> None:
    transport = start_peer(peer_process, "import time; time.sleep(60)")
    peer_process[0].kill()
    peer_process[0].wait()
    with pytest.raises(PeerTimeoutError, match=r"rank 0 waited 0\.5 s for rank 1: request 0, layer 1, phase 'codes'"):
        transport.receive(1, Tag(0, 1, "codes"), SHORT_S)
    with pytest.raises(TransportError, match="rank 0 could not send to rank 1: request 0, layer 1, phase 'codes'"):
        transport.send(1, Tag(0, 1, "codes"), b"x")
    began = time.monotonic()
    transport.close()
    assert time.monotonic() - began < 1


def test_zeromq_abort_does_not_wait_for_a_peer_that_does_not_read(peer_process: list[subprocess.Popen[bytes]]) -> None:
    transport = start_peer(peer_process, "import time; time.sleep(60)")
    peer_process[0].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    for layer in range(64):  # more than two kernels buffer
        transport.send(1, Tag(0, layer, "rows"), bytes(1 << 20))
    transport.close(abort=True)
    assert time.monotonic() - began < 2


def test_zeromq_clean_close_waits_only_so_long(
    peer_process: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zeromq, "LINGER_S", SHORT_S)
    transport = start_peer(peer_process, "import time; time.sleep(60)")
    peer_process[0].send_signal(signal.SIGSTOP)
    for layer in range(64):
        transport.send(1, Tag(0, layer, "rows"), bytes(1 << 20))
    began = time.monotonic()
    transport.close()
    assert SHORT_S <= time.monotonic() - began < SHORT_S + 2


@pytest.mark.parametrize("then", ["", "transport = None", "raise SystemExit(0)"])
def test_zeromq_never_keeps_a_process_from_ending(peer_process: list[subprocess.Popen[bytes]], then: str) -> None:
    transport = start_peer(peer_process, then)
    assert peer_process[0].wait(PATIENCE_S) == 0
    transport.close()


def test_zeromq_dropped_without_close_does_not_wait(peer_process: list[subprocess.Popen[bytes]]) -> None:
    transport: ZeroMqTransport | None = start_peer(peer_process, "import time; time.sleep(60)")
    assert transport is not None
    peer_process[0].send_signal(signal.SIGSTOP)
    context = transport._context
    for layer in range(64):
        transport.send(1, Tag(0, layer, "rows"), bytes(1 << 20))
    began = time.monotonic()
    transport = None
    gc.collect()
    assert context.closed
    assert time.monotonic() - began < zeromq.LINGER_S / 2
