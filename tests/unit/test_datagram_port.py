"""One rank's UDP socket: what it hands out, what it drops and counts, how it waits."""

import logging
import secrets
import socket
import threading
import time

import pytest
from datagram_worlds import KEY, LOOPBACK, TOKEN, ports
from transport_worlds import in_threads

from astra.errors import TransportError
from astra.transport import inproc
from astra.transport.datagram import KEPT_DATAGRAMS, Address, DatagramPort, open_port
from astra.transport.datagram_framing import Label, encode_header, seal

PATIENCE_S = 10.0
"""For datagrams that will come."""
BRIEF_S = 0.1
"""For datagrams that will not."""
STAMPS_BEGIN_S = 0.2
"""The kernel begins to stamp packets a moment after the first socket on the machine has asked for it."""
LABEL = Label(request=2, layer=1, number=0, parts=1, first=0, rows=4, total=4)


def settle(port: DatagramPort, received: int) -> None:
    """Wait until so many datagrams have been read; loopback delivers at once, but not to a busy machine."""
    deadline_s = time.monotonic() + PATIENCE_S
    while port.traffic.received < received and time.monotonic() < deadline_s:
        port.begin(2, 1)
        time.sleep(0.001)
    assert port.traffic.received == received


def test_port_delivers_with_the_time_of_arrival() -> None:
    with ports(2) as ((first, second), _):
        second.begin(2, 1)
        time.sleep(STAMPS_BEGIN_S)
        sent_s = time.monotonic()
        first.send(1, LABEL, b"codes")
        time.sleep(0.2)
        (datagram,) = second.collect(PATIENCE_S)
        assert (datagram.sender, datagram.label, datagram.piece) == (0, LABEL, b"codes")
        assert sent_s - 0.05 < datagram.arrived_s < sent_s + 0.15, "when it came, not when it was read"
        assert first.traffic.payload_bytes_sent == 5
        assert (first.traffic.sent, second.traffic.received) == (1, 1)


def test_port_hears_that_a_request_has_begun() -> None:
    with ports(2) as ((first, second), _):
        assert not second.await_call(0, 3, BRIEF_S)
        first.call(1, 3)
        assert second.await_call(0, 3, PATIENCE_S)
        assert second.await_call(0, 2, 0.0), "an earlier one has then begun too"
        assert not second.await_call(0, 4, BRIEF_S)
        assert (first.traffic.sent, second.traffic.received, second.traffic.late) == (1, 1, 0)


def test_rows_of_a_request_say_that_it_has_begun() -> None:
    with ports(3) as ((first, second, third), _):
        third.send(1, LABEL, b"codes")
        assert not second.await_call(0, LABEL.request, BRIEF_S), "they are another rank's"
        first.send(1, LABEL, b"codes")
        assert second.await_call(0, LABEL.request, PATIENCE_S)
        second.begin(LABEL.request, LABEL.layer)
        assert len(second.collect(PATIENCE_S)) == 2, "they are still there"


def test_port_stops_waiting_for_a_peer_that_is_past() -> None:
    with ports(3) as ((first, second, third), _):
        second.begin(LABEL.request, LABEL.layer)
        third.send(1, LABEL._replace(layer=LABEL.layer + 1), b"next")
        settled_s = time.monotonic() + PATIENCE_S
        while not second.is_past(2) and time.monotonic() < settled_s:
            assert second.collect(BRIEF_S, of=(0, 2)) == []
        assert (second.is_past(0), second.is_past(2)) == (False, True)
        first.send(1, LABEL, b"codes")
        assert len(second.collect(PATIENCE_S, of=(0,))) == 1, "whoever is not past is waited for"
        second.begin(LABEL.request, LABEL.layer + 1)
        assert not second.is_past(2)
        assert len(second.collect(PATIENCE_S, of=(2,))) == 1


def test_port_hands_out_each_datagram_once() -> None:
    with ports(2) as ((first, second), _):
        second.begin(2, 1)
        first.send(1, LABEL, b"a")
        assert len(second.collect(PATIENCE_S)) == 1
        assert second.collect(0.0) == []


def test_port_keeps_what_belongs_to_layers_and_requests_to_come() -> None:
    with ports(2) as ((first, second), _):
        for request, layer in [(3, 0), (2, 2), (2, 1)]:
            first.send(1, LABEL._replace(request=request, layer=layer), bytes([request, layer]))
        settle(second, 3)
        for key in [(2, 1), (2, 2), (3, 0)]:
            second.begin(*key)
            assert [datagram.piece for datagram in second.collect(PATIENCE_S)] == [bytes(key)]
        assert second.traffic.late == 0


def test_port_drops_what_belongs_to_an_older_layer_and_counts_it() -> None:
    with ports(2) as ((first, second), _):
        first.send(1, LABEL, b"never asked for")
        settle(second, 1)
        second.begin(2, 2)
        first.send(1, LABEL, b"late")
        first.send(1, LABEL._replace(request=1, layer=9), b"later")
        first.send(1, LABEL._replace(layer=2), b"in time")
        deadline_s = time.monotonic() + PATIENCE_S
        pieces: list[bytes] = []
        while not pieces and time.monotonic() < deadline_s:
            pieces = [datagram.piece for datagram in second.collect(BRIEF_S)]
        assert pieces == [b"in time"]
        assert second.traffic.late == 3
        assert [datagram.piece for datagram in second.late] == [b"never asked for", b"late", b"later"]


@pytest.mark.parametrize(
    ("token", "epoch", "sender", "stranger"),
    [(TOKEN ^ 1, 0, 0, False), (TOKEN, 1, 0, False), (TOKEN, 0, 1, False), (TOKEN, 0, 9, False), (TOKEN, 0, 0, True)],
    ids=["another run", "another epoch", "its own rank", "no such rank", "another address"],
)
def test_port_drops_what_is_foreign(
    token: int, epoch: int, sender: int, stranger: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with ports(2) as ((first, second), sockets), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        second.begin(2, 1)
        packet = seal(KEY, encode_header(token, epoch, sender, LABEL), b"x")
        for _ in range(3):
            if stranger:
                other.sendto(packet, sockets[1].getsockname())
            else:
                socket.socket.sendto(sockets[0], packet, sockets[1].getsockname())
        assert second.collect(BRIEF_S) == []
        assert (second.traffic.foreign, second.traffic.received) == (3, 0)
        assert len(caplog.records) == 1
        first.send(1, LABEL, b"good")
        assert [datagram.piece for datagram in second.collect(PATIENCE_S)] == [b"good"]


def test_port_drops_what_is_malformed_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with ports(2) as ((first, second), sockets), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        second.begin(2, 1)
        junk = [b"", b"x", secrets.token_bytes(30), bytes(2000), encode_header(TOKEN, 0, 0, LABEL)[:-1]]
        for packet in junk:
            other.sendto(packet, sockets[1].getsockname())
        first.send(1, LABEL, b"good")
        assert [datagram.piece for datagram in second.collect(PATIENCE_S)] == [b"good"]
        assert second.traffic.malformed == len(junk)
        assert [record.levelno for record in caplog.records] == [logging.WARNING]


@pytest.mark.parametrize("forged", ["another key", "another piece", "another row"])
def test_port_drops_what_was_not_made_with_the_runs_key(forged: str) -> None:
    with ports(2) as ((first, second), sockets):
        second.begin(2, 1)
        header = encode_header(TOKEN, 0, 0, LABEL)
        packet = seal(bytes(32) if forged == "another key" else KEY, header, b"x")
        if forged == "another piece":
            packet = packet[:-1] + b"y"
        if forged == "another row":
            packet = encode_header(TOKEN, 0, 0, LABEL._replace(rows=3)) + packet[len(header) :]
        socket.socket.sendto(sockets[0], packet, sockets[1].getsockname())
        assert second.collect(BRIEF_S) == []
        assert (second.traffic.malformed, second.traffic.received) == (1, 0)
        first.send(1, LABEL, b"good")
        assert [datagram.piece for datagram in second.collect(PATIENCE_S)] == [b"good"]


def test_port_takes_a_datagram_that_comes_again_as_a_copy_and_then_as_late() -> None:
    with ports(2) as ((_, second), sockets):
        second.begin(2, 1)
        packet = seal(KEY, encode_header(TOKEN, 0, 0, LABEL), b"x")
        for _ in range(2):
            socket.socket.sendto(sockets[0], packet, sockets[1].getsockname())
        settle(second, 2)
        second.begin(3, 0)
        socket.socket.sendto(sockets[0], packet, sockets[1].getsockname())
        assert second.collect(BRIEF_S) == []
        assert second.traffic.late == 3


def test_port_is_not_held_up_by_a_flood() -> None:
    with ports(2) as ((_, second), _):
        flood = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ended = threading.Event()

        def pour() -> None:
            while not ended.is_set():
                flood.sendto(bytes(64), second._socket.getsockname())

        thread = threading.Thread(target=pour, daemon=True)
        thread.start()
        began_s = time.monotonic()
        second.begin(0, 0)
        assert second.collect(0.2) == []
        assert time.monotonic() - began_s < PATIENCE_S
        ended.set()
        thread.join()
        flood.close()
        assert second.traffic.malformed > 0


def test_port_takes_the_epoch_that_it_is_told() -> None:
    with ports(2) as ((first, second), _):
        first.epoch = second.epoch = 7
        second.begin(2, 1)
        first.send(1, LABEL, b"x")
        assert len(second.collect(PATIENCE_S)) == 1


def test_port_keeps_a_bounded_number_of_datagrams() -> None:
    with ports(2) as ((first, second), _):
        second.begin(0, 0)
        for number in range(KEPT_DATAGRAMS + 10):
            first.send(1, LABEL._replace(layer=number % 100, request=3), b"x")
            if number % 100 == 99:
                second.collect(0.0)
        second.collect(BRIEF_S)
        assert second.traffic.received == KEPT_DATAGRAMS
        assert second.traffic.foreign == 10


def test_port_sleeps_while_it_waits_and_no_longer_than_told() -> None:
    with ports(2) as ((_, second), _):
        second.begin(0, 0)
        began_s, computed_s = time.monotonic(), time.thread_time()
        assert second.collect(0.5) == []
        assert 0.5 <= time.monotonic() - began_s < 1.5
        assert time.thread_time() - computed_s < 0.1


def test_port_counts_what_the_kernel_refuses_to_send(caplog: pytest.LogCaptureFixture) -> None:
    unreachable: Address = ("255.255.255.255", 9)  # a broadcast, which a socket must ask for first
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        port = DatagramPort(0, TOKEN, {1: unreachable}, own, key=KEY)
        port.send(1, LABEL, b"x")
        port.send(1, LABEL, b"x")
        assert (port.traffic.sent, port.traffic.refused) == (0, 2)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_open_port_makes_ranks_known_to_each_other(world_size: int) -> None:
    transports = inproc.connect(world_size)
    made = in_threads([lambda each=each: open_port(each, LOOPBACK, PATIENCE_S) for each in transports])
    opened = [port for port in made if isinstance(port, DatagramPort)]
    assert len(opened) == world_size, made
    for port in opened:
        port.begin(0, 0)
    for port in opened:
        for peer in range(world_size):
            if peer != port.rank:
                port.send(peer, LABEL._replace(request=0, layer=0), bytes([port.rank]))
    for port in opened:
        came: list[int] = []
        while len(came) < world_size - 1 and (found := port.collect(PATIENCE_S)):
            came += [datagram.sender for datagram in found]
        assert sorted(came) == [rank for rank in range(world_size) if rank != port.rank]
        port.close()
        port.close()


def test_open_port_says_which_address_is_not_its_own() -> None:
    with pytest.raises(TransportError, match=r"rank 0: data address must be one of this machine's, got '192\.0\.2\.1'"):
        open_port(inproc.connect(1)[0], "192.0.2.1", PATIENCE_S)
