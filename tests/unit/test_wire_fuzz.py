"""Whatever arrives on a socket is dropped and counted, or refused: random, damaged, cut short, repeated."""

import contextlib
import functools
import importlib.util
import random
import socket
import time
import tracemalloc
from collections.abc import Callable

import msgpack
import numpy as np
import pytest
import torch
import zmq
from datagram_worlds import KEY, ports
from fuzzing import damage
from hypothesis import given, settings
from hypothesis import strategies as st
from transport_worlds import connect_zeromq, free_port, in_threads

from astra.code_tables import CodeTables, Given
from astra.coded_rows import CodedRows
from astra.control.words import unpack_report, unpack_word
from astra.entropy import PROBABILITY_TOTAL
from astra.errors import PeerTimeoutError, TransportError, WireError
from astra.rows import Known
from astra.transport import CHUNK_BYTES, HEADER_BYTES, MAX_MESSAGE_BYTES, Tag, roster, zeromq
from astra.transport.datagram import _place, _places
from astra.transport.datagram_framing import Label, decode_datagram, encode_header, is_sealed, seal
from astra.transport.framing import cut, decode_header
from astra.transport.mailbox import Mailbox

NUM_FRAMES = 100_000
"""Random frames for every decoder."""
NUM_LIVE = 2_000
"""Frames sent to every live socket."""
PATIENCE_S = 20.0
SETTLE_S = 0.5
TOKEN = 0xDEADBEEF
TAG = Tag(3, 1, "codes")
LABEL = Label(request=3, layer=1, number=0, parts=1, first=0, rows=4, total=4)
SMALL_BYTES = 1 << 20
"""What dropping a frame may take, whatever the frame claims."""

JSON_LIKE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.integers(-5, 300) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=15,
)
"""Whatever msgpack can say."""


def frame(payload: bytes = b"abc", tag: Tag = TAG) -> bytes:
    return b"".join(next(cut(TOKEN, 1, tag, payload)))


def words() -> list[bytes]:
    """One valid message of every kind that a rank reads, to be damaged."""
    entry = ["10.0.0.1", {2: 4000}]
    fields: list[list[object]] = [
        ["hello", 3, 1, *entry],
        ["roster", 7, {0: ["10.0.0.1", {1: 4000, 2: 4001}], 1: entry, 2: ["10.0.0.3", {}]}],
        ["ready"],
        ["refuse", "why"],
        ["report", 1, "life", "d1", "10.0.0.2", "free", 0, {0: 0.5}, "", {0: 1}, {0: 1}],
        ["gone", [1], "why"],
        ["epoch", 1, [0, 2], ["10.0.0.1", "10.0.0.3"], 4000, 0, 1, 2],
        [5, KEY, [["10.0.0.1", 4000], ["10.0.0.2", 4000]]],
    ]
    return [msgpack.packb(each) for each in fields]


def read_rendezvous(packed: bytes) -> None:
    match roster.unpack(packed):
        case ["hello", _, int(rank), address, ports]:
            roster.read_entry(address, ports, range(rank + 1, 3) if 0 <= rank < 3 else range(0))
        case ["roster", int(token), dict(told)]:
            roster.read_roster(token, told, 3)


def read_ports(packed: bytes) -> None:
    for read in (lambda: _place(packed, 1), lambda: _places(packed, 2)):
        with contextlib.suppress(TransportError):
            read()


def read_datagram(packed: bytes) -> None:
    if decode_datagram(packed, 0.0) is not None:
        is_sealed(KEY, packed)


def offer_anew(packed: bytes) -> None:
    Mailbox(0, TOKEN).offer(1, packed)


def read_control(packed: bytes) -> None:
    unpack_report(packed)
    unpack_word(packed)


CODED_ROWS, CODED_VALUES, CODEWORDS = 12, 2, 16
KNOWN = Known(1, 0, torch.zeros(CODED_ROWS, CODED_VALUES, dtype=torch.int64))


@functools.cache
def codec() -> CodedRows:
    """Return one to which the first code is the likely one."""
    probabilities_GCK = np.full((CODED_VALUES, 1, CODEWORDS), PROBABILITY_TOTAL // 64, np.uint16)
    probabilities_GCK[..., 0] = PROBABILITY_TOTAL - (CODEWORDS - 1) * (PROBABILITY_TOTAL // 64)
    by_code = Given(np.zeros((CODED_VALUES, CODEWORDS), np.int64), probabilities_GCK, 2.0)
    by_position = Given(np.zeros((CODED_VALUES, CODED_ROWS), np.int64), probabilities_GCK, 2.0)
    return CodedRows(CODEWORDS.bit_length() - 1, CodeTables((by_position,) * 2, (by_code,)))


def coded(*codes: int) -> bytes:
    return codec().encode(
        torch.tensor(codes).repeat(CODED_ROWS * CODED_VALUES // len(codes)).view(CODED_ROWS, -1), KNOWN
    )


def read_codes(packed: bytes) -> None:
    with contextlib.suppress(WireError):
        codes_RV = codec().decode(packed, CODED_ROWS, CODED_VALUES, KNOWN)
        assert codes_RV.shape == (CODED_ROWS, CODED_VALUES)
        assert 0 <= int(codes_RV.min()) <= int(codes_RV.max()) < CODEWORDS


DECODERS: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
    "header": (decode_header, [frame()[:HEADER_BYTES]]),
    "mailbox": (offer_anew, [frame(), frame(bytes(320))]),
    "datagram": (read_datagram, [seal(KEY, encode_header(TOKEN, 0, 1, LABEL), b"codes")]),
    "rendezvous": (read_rendezvous, words()),
    "control": (read_control, words()),
    "ports": (read_ports, words()),
}
if importlib.util.find_spec("constriction"):
    DECODERS["codes"] = (read_codes, [coded(0), coded(0, 0, 0, 7), coded(3, 9)])  # two of them shorter than packed


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_survives_random_and_damaged_frames(name: str) -> None:
    decode, valid = DECODERS[name]
    rng = random.Random(7)
    for number in range(NUM_FRAMES):
        packed = rng.randbytes(rng.randint(0, 80)) if number % 2 else damage(rng.choice(valid), rng)
        decode(packed)


@pytest.mark.parametrize("name", ["rendezvous", "control", "ports"])
@settings(max_examples=100)
@given(fields=st.lists(JSON_LIKE, max_size=12), head=st.sampled_from(["hello", "roster", "report", "gone", "epoch", 5]))
def test_words_of_any_fields_are_read_or_refused(name: str, fields: list[object], head: object) -> None:
    DECODERS[name][0](msgpack.packb([head, *fields]))


def test_mailbox_counts_every_frame_that_it_drops_and_still_delivers() -> None:
    """10^5 damaged frames between the two halves of a message."""
    rng, mailbox = random.Random(11), Mailbox(0, TOKEN)
    mailbox.begin(3)
    valid = frame(bytes(320))
    first, second = (b"".join(each) for each in cut(TOKEN, 1, Tag(3, 2, "rows"), bytes(CHUNK_BYTES + 1)))
    mailbox.offer(1, first)
    dropped = 0
    for _ in range(NUM_FRAMES):
        junk = damage(valid, rng)
        header = decode_header(junk)
        if header is None or header.token != TOKEN or header.sender != 1 or len(junk) != len(valid):
            dropped += 1
            mailbox.offer(1, junk)
    mailbox.offer(1, second)
    assert mailbox.malformed + mailbox.stale == dropped > NUM_FRAMES / 10
    found = mailbox.take((1,), Tag(3, 2, "rows"))
    assert found is not None
    assert len(found[1]) == CHUNK_BYTES + 1


def test_header_that_claims_the_most_takes_no_memory() -> None:
    mailbox = Mailbox(0, TOKEN)
    header, _ = next(cut(TOKEN, 1, TAG, bytes(CHUNK_BYTES)))
    total = bytearray(header)
    total[-4:] = MAX_MESSAGE_BYTES.to_bytes(4, "big")
    claiming = bytes(total) + bytes(CHUNK_BYTES)
    tracemalloc.start()
    try:
        for _ in range(50):
            mailbox.offer(1, claiming)
        assert tracemalloc.get_traced_memory()[1] < SMALL_BYTES
    finally:
        tracemalloc.stop()
    assert mailbox.malformed == 49, "the first is the beginning of a message, the others repeat it"


@pytest.mark.parametrize("again", [0, 1])
def test_mailbox_drops_a_frame_that_is_repeated_within_its_message(again: int) -> None:
    mailbox = Mailbox(0, TOKEN)
    pieces = [b"".join(each) for each in cut(TOKEN, 1, TAG, bytes(range(256)) * 1024)]
    for piece in (*pieces[:2], pieces[again], *pieces[2:]):
        mailbox.offer(1, piece)
    found = mailbox.take((1,), TAG)
    assert found is not None
    assert bytes(found[1]) == bytes(range(256)) * 1024
    assert mailbox.malformed == 1


def test_mailbox_counts_frames_that_come_again_after_their_request_as_stale() -> None:
    mailbox = Mailbox(0, TOKEN)
    mailbox.begin(3)
    mailbox.offer(1, frame())
    assert mailbox.take((1,), TAG) is not None
    mailbox.offer(1, frame())  # again, in the same request: never asked for, stale when the next begins
    mailbox.begin(4)
    mailbox.offer(1, frame())
    assert (mailbox.stale, mailbox.malformed) == (2, 0)
    assert mailbox.take((1,), TAG) is None


def test_rendezvous_lives_through_junk_on_its_port() -> None:
    """Strangers' messages and raw bytes, and then the rank that was waited for."""
    port, rng = free_port(), random.Random(13)

    def strangers() -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.connect(f"tcp://127.0.0.1:{port}")
            harmless = [word for word in words() if b"hello" not in word]  # without keys, a hello is believed
            for number in range(NUM_LIVE):
                junk = rng.randbytes(rng.randint(0, 60)) if number % 2 else damage(rng.choice(harmless), rng)
                dealer.send_multipart([junk] * rng.randint(1, 3))
            for _ in range(20):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as raw:
                    raw.sendall(rng.randbytes(300))
            time.sleep(SETTLE_S)

    def guest() -> object:
        time.sleep(SETTLE_S)
        return zeromq.connect(1, 2, "127.0.0.1", port, PATIENCE_S)

    made = in_threads([lambda: zeromq.connect(0, 2, "127.0.0.1", port, PATIENCE_S), strangers, guest])
    for each in (made[0], made[2]):
        assert isinstance(each, zeromq.ZeroMqTransport), made
        each.close(abort=True)


def test_pair_lives_through_junk_on_its_port() -> None:
    first, second = connect_zeromq(2)
    assert isinstance(first, zeromq.ZeroMqTransport)
    rng = random.Random(17)
    endpoint = first._sockets[1].get(zmq.LAST_ENDPOINT).decode().rstrip("\0")
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.linger = 0
        stranger.connect(endpoint)
        for number in range(NUM_LIVE):
            stranger.send(rng.randbytes(rng.randint(0, 80)) if number % 2 else damage(frame(), rng))
        deadline_s = time.monotonic() + PATIENCE_S
        while first.traffic.malformed < NUM_LIVE and time.monotonic() < deadline_s:
            with contextlib.suppress(PeerTimeoutError):
                first.receive(1, TAG, 0.05)
        assert first.traffic.malformed == NUM_LIVE
    second.send(0, TAG, b"friend")
    assert bytes(first.receive(1, TAG, PATIENCE_S)) == b"friend"
    for transport in (first, second):
        transport.close(abort=True)


def test_datagram_port_lives_through_junk() -> None:
    rng = random.Random(19)
    valid = seal(KEY, encode_header(TOKEN, 0, 0, LABEL), b"codes")
    with ports(2) as ((first, second), sockets):
        second.begin(LABEL.request, LABEL.layer)
        for number in range(NUM_LIVE):
            junk = rng.randbytes(rng.randint(0, 80)) if number % 2 else damage(valid, rng)
            socket.socket.sendto(sockets[0], junk, sockets[1].getsockname())
            if number % 100 == 99:
                assert all(found.piece == b"codes" for found in second.collect(0.0))
        first.send(1, LABEL, b"friend")
        pieces: list[bytes] = []
        while b"friend" not in pieces:
            came = second.collect(PATIENCE_S)
            assert came
            pieces += [found.piece for found in came]
        counted = second.traffic
        assert counted.malformed + counted.foreign + counted.received == NUM_LIVE + 1
        assert counted.received < NUM_LIVE / 100, "but for the damage that changes nothing"
