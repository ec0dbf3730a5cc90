"""Exchanges between ranks, over threads and over loopback TCP."""

from collections.abc import Callable, Iterator

import pytest
from datagram_worlds import ports
from transport_worlds import CONNECTORS, in_threads

from astra.collectives import Collectives
from astra.errors import PeerTimeoutError
from astra.transport import Tag, inproc
from astra.transport.framed import FramedTransport

PATIENCE_S = 10.0
SHORT_S = 0.1
TAG = Tag(0, 0, "codes")

Connect = Callable[..., list[Collectives]]


@pytest.fixture(params=sorted(CONNECTORS))
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    made: list[FramedTransport] = []

    def connect_ranks(world_size: int, timeout_s: float = PATIENCE_S) -> list[Collectives]:
        made.extend(CONNECTORS[request.param](world_size))
        return [Collectives(transport, timeout_s) for transport in made]

    yield connect_ranks
    for transport in made:
        transport.close(abort=True)


def on_all(ranks: list[Collectives], call: Callable[[Collectives], object]) -> list[object]:
    results = in_threads([lambda rank=rank: call(rank) for rank in ranks])
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def own(rank: Collectives) -> bytes:
    return f"from {rank.rank}".encode()


def test_collectives_know_their_peers(connect: Connect) -> None:
    assert [rank.peers for rank in connect(3)] == [(1, 2), (0, 2), (0, 1)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_all_gather_brings_every_peers_payload_in_order_of_rank(connect: Connect, world_size: int) -> None:
    ranks = connect(world_size)
    results = on_all(ranks, lambda rank: rank.all_gather(TAG, own(rank)))
    for rank, result in zip(ranks, results, strict=True):
        assert isinstance(result, dict)
        assert list(result) == list(rank.peers)
        assert {peer: bytes(payload) for peer, payload in result.items()} == {
            peer: f"from {peer}".encode() for peer in rank.peers
        }


def test_all_gather_sends_before_it_waits(connect: Connect) -> None:
    first, second = connect(2)
    pending = [rank.start_all_gather(TAG, own(rank)) for rank in (first, second)]
    assert pending[0].wait() == {1: b"from 1"}
    assert pending[1].wait() == {0: b"from 0"}


def test_all_gather_among_some(connect: Connect) -> None:
    ranks = connect(3)
    pending = [ranks[0].start_all_gather(TAG, b"zero", peers=(2,)), ranks[2].start_all_gather(TAG, b"two", peers=(0,))]
    assert [gather.wait() for gather in pending] == [{2: b"two"}, {0: b"zero"}]
    assert ranks[0].transport.traffic.messages_sent == 1


def test_gather_yields_in_order_of_arrival_and_wait_gives_all(connect: Connect) -> None:
    ranks = connect(4)
    pending = ranks[0].start_all_gather(TAG, b"")
    arrivals = pending.arrivals()
    for peer in (3, 1):
        ranks[peer].transport.send(0, TAG, bytes([peer]))
        assert next(arrivals) == (peer, bytes([peer]))
    ranks[2].transport.send(0, TAG, b"\2")
    assert pending.wait() == {1: b"\1", 2: b"\2", 3: b"\3"}
    assert pending.wait() == {1: b"\1", 2: b"\2", 3: b"\3"}


def test_gather_names_all_that_are_missing(connect: Connect) -> None:
    ranks = connect(4, timeout_s=SHORT_S)
    pending = ranks[0].start_all_gather(TAG, b"")
    ranks[2].transport.send(0, TAG, b"here")
    with pytest.raises(PeerTimeoutError, match=r"rank 0 waited 0\.1 s for ranks 1, 3: request 0, layer 0"):
        pending.wait()


@pytest.mark.parametrize("root", [0, 2])
def test_gather_brings_all_to_the_root(connect: Connect, root: int) -> None:
    results = on_all(connect(3), lambda rank: rank.gather(TAG, own(rank), root))
    assert results[root] == {peer: f"from {peer}".encode() for peer in range(3) if peer != root}
    assert [result for rank, result in enumerate(results) if rank != root] == [None, None]


@pytest.mark.parametrize("root", [0, 2])
def test_broadcast_gives_the_roots_payload_to_all(connect: Connect, root: int) -> None:
    results = on_all(connect(3), lambda rank: rank.broadcast(TAG, b"all" if rank.rank == root else None, root))
    assert results == [b"all", b"all", b"all"]


@pytest.mark.parametrize("root", [0, 2])
def test_scatter_gives_each_rank_its_own(connect: Connect, root: int) -> None:
    payloads = [b"zero", b"", b"two"]
    results = on_all(connect(3), lambda rank: rank.scatter(TAG, payloads if rank.rank == root else None, root))
    assert results == payloads


def test_scatter_and_broadcast_need_something_at_the_root(connect: Connect) -> None:
    first, _ = connect(2)
    with pytest.raises(AssertionError, match="one payload for each rank"):
        first.scatter(TAG, [b"one"])
    with pytest.raises(AssertionError, match="the root must have something to broadcast"):
        first.broadcast(TAG, None)


def test_collectives_alone_move_nothing(connect: Connect) -> None:
    (alone,) = connect(1)
    assert alone.all_gather(TAG, b"x") == {}
    assert alone.gather(TAG, b"x") == {}
    assert alone.broadcast(TAG, b"x") == b"x"
    assert alone.scatter(TAG, [b"x"]) == b"x"
    assert alone.transport.traffic.messages_sent == 0


@pytest.mark.parametrize(
    ("lost", "as_datagram"), [(0, True), (1, True), (2, False)], ids=["nothing lost", "one copy lost", "both lost"]
)
def test_call_comes_as_a_datagram_or_else_as_a_message(lost: int, as_datagram: bool) -> None:
    transports = inproc.connect(2)
    with ports(2, lambda position, receiver, datagram: position < lost) as (opened, _):
        first, second = (Collectives(*each) for each in zip(transports, [PATIENCE_S] * 2, opened, strict=True))
        for request in range(1, 3):
            tag = Tag(request, 0, "start")
            first.call(tag, copies=2)
            assert second.await_call(tag) is (as_datagram or request == 2)
            if as_datagram or request == 2:
                assert second.broadcast(tag, None) == b"", "the message comes all the same"


def test_call_that_never_comes_names_who_was_waited_for() -> None:
    with ports(2) as (opened, _):
        second = Collectives(inproc.connect(2)[1], SHORT_S, opened[1])
        with pytest.raises(PeerTimeoutError, match=rf"rank 1 waited {SHORT_S:g} s for rank 0 to begin request 1;"):
            second.await_call(Tag(1, 0, "start"))
