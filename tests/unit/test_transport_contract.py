"""What every transport promises; the same tests over threads and over loopback TCP."""

import time
from collections.abc import Callable, Iterator

import pytest
from transport_worlds import CONNECTORS

from astra.errors import PeerTimeoutError, TransportError
from astra.transport import CHUNK_BYTES, Tag, Traffic, Transport
from astra.transport.framed import FramedTransport
from astra.transport.framing import cut

PATIENCE_S = 10.0
"""For messages that will come."""

BRIEF_S = 0.1
"""For messages that will not."""

CODES = Tag(0, 0, "codes")

World = Callable[[int], list[FramedTransport]]


@pytest.fixture(params=sorted(CONNECTORS))
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made: list[FramedTransport] = []

    def connect(world_size: int) -> list[FramedTransport]:
        made.extend(CONNECTORS[request.param](world_size))
        return made

    yield connect
    for transport in made:
        transport.close(abort=True)


def pattern(size: int) -> bytes:
    return bytes(range(251)) * (size // 251) + bytes(range(size % 251))


def test_transport_knows_its_place(world: World) -> None:
    transports: list[FramedTransport] = world(3)
    checked: list[Transport] = list(transports)  # the contract holds for the type checker too
    assert [(transport.rank, transport.world_size) for transport in checked] == [(0, 3), (1, 3), (2, 3)]


def test_transport_of_one_rank_has_nobody_to_talk_to(world: World) -> None:
    (alone,) = world(1)
    with pytest.raises(TransportError, match=r"rank 0: peer must be another rank below 1, got 0"):
        alone.send(0, CODES, b"")


@pytest.mark.parametrize("size", [0, 1, 255, 256, 320, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 786_432])
def test_transport_carries_any_size_both_ways(world: World, size: int) -> None:
    first, second = world(2)
    first.send(1, CODES, pattern(size))
    second.send(0, CODES, pattern(size)[::-1])
    assert second.receive(0, CODES, PATIENCE_S) == pattern(size)
    assert first.receive(1, CODES, PATIENCE_S) == pattern(size)[::-1]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_transport_takes_any_buffer(world: World, kind: type) -> None:
    first, second = world(2)
    first.send(1, CODES, kind(b"abc"))
    assert bytes(second.receive(0, CODES, PATIENCE_S)) == b"abc"


def test_transport_counts_a_memoryview_of_numbers_in_bytes(world: World) -> None:
    first, second = world(2)
    first.send(1, CODES, memoryview(bytearray(24)).cast("d"))
    assert first.traffic.payload_bytes_sent == 24
    assert len(second.receive(0, CODES, PATIENCE_S)) == 24


def test_transport_lets_the_sender_reuse_its_buffer(world: World) -> None:
    first, second = world(2)
    buffer = bytearray(pattern(200_000))
    first.send(1, CODES, buffer)
    buffer[:] = bytes(len(buffer))
    assert second.receive(0, CODES, PATIENCE_S) == pattern(200_000)


def test_transport_gives_memory_that_may_be_written(world: World) -> None:
    first, second = world(2)
    first.send(1, CODES, b"abc")
    received = second.receive(0, CODES, PATIENCE_S)
    received[0] = ord("x")
    assert bytes(received) == b"xbc"


def test_transport_keeps_messages_of_later_tags(world: World) -> None:
    first, second = world(2)
    tags = [Tag(0, 0, "codes"), Tag(0, 1, "codes"), Tag(0, 1, "class"), Tag(1, 0, "codes")]
    for tag in tags:
        first.send(1, tag, str(tag).encode())
    for tag in (tags[2], tags[0], tags[1], tags[3]):
        assert bytes(second.receive(0, tag, PATIENCE_S)) == str(tag).encode()
    assert second.traffic.stale == 0


def test_transport_keeps_the_order_within_a_tag(world: World) -> None:
    first, second = world(2)
    for number in range(5):
        first.send(1, CODES, bytes([number]))
    assert [second.receive(0, CODES, PATIENCE_S)[0] for _ in range(5)] == [0, 1, 2, 3, 4]


def test_transport_keeps_peers_apart(world: World) -> None:
    first, second, third = world(3)
    second.send(0, CODES, b"second")
    third.send(0, CODES, b"third")
    assert bytes(first.receive(2, CODES, PATIENCE_S)) == b"third"
    assert bytes(first.receive(1, CODES, PATIENCE_S)) == b"second"


def test_transport_receive_any_takes_the_first_to_arrive(world: World) -> None:
    first, second, third = world(3)
    third.send(0, CODES, b"third")
    assert first.receive_any({1, 2}, CODES, PATIENCE_S) == (2, b"third")
    second.send(0, CODES, b"second")
    assert first.receive_any({1}, CODES, PATIENCE_S) == (1, b"second")


def test_transport_receive_any_leaves_other_peers_messages(world: World) -> None:
    first, second, third = world(3)
    second.send(0, CODES, b"second")
    third.send(0, CODES, b"third")
    assert first.receive_any((2,), CODES, PATIENCE_S) == (2, b"third")
    assert first.receive_any((1, 2), CODES, PATIENCE_S) == (1, b"second")


def test_transport_names_who_it_waited_for(world: World) -> None:
    _, second, _ = world(3)
    with pytest.raises(
        PeerTimeoutError,
        match=r"^rank 1 waited 0\.1 s for rank 2: request 3, layer 4, phase 'codes' did not arrive; look at their logs",
    ):
        second.receive(2, Tag(3, 4, "codes"), BRIEF_S)
    with pytest.raises(PeerTimeoutError, match="rank 1 waited 0 s for ranks 0, 2: request 3"):
        second.receive_any((2, 0), Tag(3, 4, "codes"), 0)


def test_transport_waits_as_long_as_told(world: World) -> None:
    first, _ = world(2)
    began = time.monotonic()
    with pytest.raises(PeerTimeoutError):
        first.receive(1, CODES, BRIEF_S)
    assert BRIEF_S <= time.monotonic() - began < BRIEF_S + 1


def test_transport_sleeps_while_it_waits(world: World) -> None:
    first, _ = world(2)
    began = time.thread_time()
    with pytest.raises(PeerTimeoutError):
        first.receive(1, CODES, 0.5)
    assert time.thread_time() - began < 0.1


def test_transport_finds_what_has_come_without_waiting(world: World) -> None:
    first, second = world(2)
    first.send(1, CODES, b"a")
    first.send(1, Tag(0, 1, "codes"), b"b")
    second.receive(0, Tag(0, 1, "codes"), PATIENCE_S)
    assert bytes(second.receive(0, CODES, 0)) == b"a"


def test_transport_drops_frames_of_earlier_requests(world: World) -> None:
    first, second = world(2)
    first.send(1, Tag(1, 0, "codes"), bytes(2 * CHUNK_BYTES))  # kept, then too late
    first.send(1, Tag(2, 0, "codes"), b"two")
    assert bytes(second.receive(0, Tag(2, 0, "codes"), PATIENCE_S)) == b"two"
    assert second.traffic.stale == 2
    first.send(1, Tag(1, 0, "class"), b"late")
    first.send(1, Tag(2, 1, "codes"), b"next")
    assert bytes(second.receive(0, Tag(2, 1, "codes"), PATIENCE_S)) == b"next"
    assert second.traffic.stale == 3


def test_transport_refuses_to_go_back_to_an_earlier_request(world: World) -> None:
    first, _ = world(2)
    with pytest.raises(PeerTimeoutError):
        first.receive(1, Tag(5, 0, "codes"), 0)
    with pytest.raises(TransportError, match="rank 0: request must be 5 or later, got 4; count requests upwards"):
        first.receive(1, Tag(4, 0, "codes"), 0)


def test_transport_drops_malformed_frames_and_goes_on(world: World, caplog: pytest.LogCaptureFixture) -> None:
    first, second = world(2)
    good = next(cut(first._token, 0, CODES, b"good"))
    foreign = next(cut(first._token ^ 1, 0, CODES, b"another run"))
    forged = next(cut(first._token, 1, CODES, b"another rank"))
    for header, piece in [(b"", b""), (b"junk", b"x"), (good[0], b"too long"), foreign, forged, good]:
        first._push(1, CODES, (header, memoryview(piece)))
    assert bytes(second.receive(0, CODES, PATIENCE_S)) == b"good"
    assert second.traffic.malformed == 5
    assert len(caplog.records) == 1


def test_transport_counts_what_it_sent(world: World) -> None:
    first, _, _ = world(3)
    before = first.traffic
    first.send(1, CODES, bytes(320))
    first.send(2, CODES, bytes(786_432))
    first.send(2, CODES, b"")
    assert before == Traffic(payload_bytes_sent=0, frames_sent=0, messages_sent=0, stale=0, malformed=0)
    assert first.traffic == Traffic(payload_bytes_sent=786_752, frames_sent=14, messages_sent=3, stale=0, malformed=0)


@pytest.mark.parametrize("peer", [-1, 0, 2])
def test_transport_refuses_peers_that_are_not(world: World, peer: int) -> None:
    first, _ = world(2)
    message = f"rank 0: peer must be another rank below 2, got {peer}"
    with pytest.raises(TransportError, match=message):
        first.send(peer, CODES, b"")
    with pytest.raises(TransportError, match=message):
        first.receive(peer, CODES, 0)


@pytest.mark.parametrize("abort", [False, True])
def test_transport_closes_more_than_once(world: World, abort: bool) -> None:
    first, _ = world(2)
    first.close(abort)
    first.close(not abort)
    with pytest.raises(TransportError, match="rank 0: the transport is closed"):
        first.send(1, CODES, b"")
    with pytest.raises(TransportError, match="rank 0: the transport is closed"):
        first.receive(1, CODES, 0)


def test_transport_delivers_what_was_sent_before_a_clean_close(world: World) -> None:
    first, second = world(2)
    for layer in range(12):
        first.send(1, Tag(0, layer, "rows"), bytes(786_432))
    first.close()
    for layer in range(12):
        assert len(second.receive(0, Tag(0, layer, "rows"), PATIENCE_S)) == 786_432


def send_until_it_fails(transport: Transport, peer: int) -> None:
    """TCP tells of a connection's end only after a while."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        transport.send(peer, CODES, b"x")
        time.sleep(0.01)


@pytest.mark.parametrize(("sender", "gone"), [(0, 1), (1, 0)])
def test_transport_fails_to_send_to_a_peer_that_is_gone(world: World, sender: int, gone: int) -> None:
    transports = world(3)
    transports[gone].close(abort=True)
    with pytest.raises(TransportError, match=f"rank {sender}.* rank {gone}"):
        send_until_it_fails(transports[sender], gone)
    transports[sender].send(2, CODES, b"still there")
    assert bytes(transports[2].receive(sender, CODES, PATIENCE_S)) == b"still there"
