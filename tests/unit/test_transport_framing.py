"""Frames, headers, and a mailbox that nothing can upset."""

import logging

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra.errors import TransportError
from astra.transport import CHUNK_BYTES, HEADER_BYTES, MAX_MESSAGE_BYTES, Tag, framed_size, num_frames
from astra.transport.framing import Header, cut, decode_header
from astra.transport.mailbox import Mailbox

TOKEN = 0xDEADBEEF
TAGS = st.builds(
    Tag,
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**16 - 1),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12),
)

TCP_SEGMENT_BYTES = 1448
"""What a packet of 1500 bytes carries behind IPv4, TCP and its timestamps."""


def cut_up(tag: Tag, payload: bytes, sender: int = 1, token: int = TOKEN) -> list[tuple[bytes, memoryview]]:
    return list(cut(token, sender, tag, payload))


def frames(tag: Tag, payload: bytes) -> list[bytes]:
    return [b"".join(frame) for frame in cut_up(tag, payload)]


@given(tag=TAGS, sender=st.integers(0, 255), token=st.integers(0, 2**32 - 1), size=st.sampled_from([0, 1, 320, 65537]))
def test_header_round_trip(tag: Tag, sender: int, token: int, size: int) -> None:
    for chunk, (header, _) in enumerate(cut_up(tag, bytes(size), sender, token)):
        assert len(header) == HEADER_BYTES
        assert decode_header(header) == Header(token, sender, tag, chunk, size)


def test_header_is_a_msgpack_array() -> None:
    header, _ = cut_up(Tag(3, 4, "codes"), b"abc")[0]
    assert msgpack.unpackb(header) == [TOKEN, 1, 3, 4, "codes" + "\0" * 7, 0, 3]


@pytest.mark.parametrize(("size", "count"), [(0, 1), (1, 1), (CHUNK_BYTES, 1), (CHUNK_BYTES + 1, 2), (786_432, 12)])
def test_cut_makes_the_fewest_frames(size: int, count: int) -> None:
    payload = bytes(range(256)) * (size // 256 + 1)
    pieces = [piece for _, piece in cut_up(Tag(0, 0, "x"), payload[:size])]
    assert len(pieces) == num_frames(size) == count
    assert b"".join(pieces) == payload[:size]


def test_cut_does_not_copy() -> None:
    payload = bytearray(10)
    ((_, piece),) = cut_up(Tag(0, 0, "x"), payload)
    payload[3] = 7
    assert piece[3] == 7


def test_framed_size_of_a_slice_of_codes_is_one_segment() -> None:
    assert framed_size(320) == 320 + HEADER_BYTES + 9 <= TCP_SEGMENT_BYTES


@pytest.mark.parametrize("phase", ["", "thirteen chars", "größe", "a\0"])
def test_tag_refuses_a_phase_that_does_not_fit(phase: str) -> None:
    with pytest.raises(TransportError, match="phase must be 1 to 12 ASCII characters"):
        frames(Tag(0, 0, phase), b"")


@pytest.mark.parametrize("tag", [Tag(-1, 0, "x"), Tag(2**32, 0, "x"), Tag(0, -1, "x"), Tag(0, 2**16, "x")])
def test_tag_refuses_numbers_that_do_not_fit(tag: Tag) -> None:
    with pytest.raises(TransportError, match="request must be 0 to 4294967295 and layer 0 to 65535"):
        frames(tag, b"")


def test_cut_refuses_a_payload_that_is_too_large() -> None:
    with pytest.raises(TransportError, match=f"rank 1: payload must be at most {MAX_MESSAGE_BYTES} bytes"):
        frames(Tag(0, 0, "x"), bytes(MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize(
    "fields",
    [
        [TOKEN, 1, 0, 0, "x" * 12, 1, 10],  # a chunk that the size leaves no room for
        [TOKEN, 1, 0, 0, "x" * 12, 0, MAX_MESSAGE_BYTES + 1],
        [TOKEN, 1, 0, 0, 5, 0, 10],
        [True, 1, 0, 0, "x" * 12, 0, 10],
        [TOKEN, -1, 0, 0, "x" * 12, 0, 10],
        [TOKEN, 1],
        {"token": TOKEN},
        7,
    ],
)
def test_header_refuses_other_msgpack(fields: object) -> None:
    packed = msgpack.packb(fields)
    assert decode_header(packed) is None
    assert decode_header(packed.ljust(HEADER_BYTES, b"\0")[:HEADER_BYTES]) is None


@settings(max_examples=500)
@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_header_never_raises(part: bytes) -> None:
    decode_header(part)


@settings(max_examples=300)
@given(st.binary(max_size=80), st.integers(0, HEADER_BYTES - 1), st.integers(0, 255))
def test_mailbox_survives_any_frame(junk: bytes, position: int, value: int) -> None:
    mailbox = Mailbox(0, TOKEN)
    mailbox.offer(1, junk)
    assert mailbox.malformed == 1
    (frame,) = frames(Tag(0, 0, "x"), b"abc")
    damaged = bytearray(frame)
    damaged[position] = value
    mailbox.offer(1, bytes(damaged))
    mailbox.offer(1, frame)
    found = mailbox.take((1,), Tag(0, 0, "x"))
    assert found is not None
    assert bytes(found[1]) == b"abc"


def test_mailbox_logs_only_the_first_malformed_frame(caplog: pytest.LogCaptureFixture) -> None:
    mailbox = Mailbox(0, TOKEN)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            mailbox.offer(2, b"?")
    assert mailbox.malformed == 3
    assert [record.getMessage() for record in caplog.records] == [
        "rank 0 dropped a frame on the connection to rank 2: its header cannot be read; more are counted but not logged"
    ]


@pytest.mark.parametrize("order", [[1, 0], [0, 0], [0, 2, 1], [1]])
def test_mailbox_drops_chunks_out_of_turn(order: list[int]) -> None:
    mailbox = Mailbox(0, TOKEN)
    tag = Tag(0, 0, "x")
    pieces = frames(tag, bytes(2 * CHUNK_BYTES + 5))
    for chunk in order:
        mailbox.offer(1, pieces[chunk])
    assert mailbox.malformed >= 1
    assert mailbox.take((1,), tag) is None
    for piece in pieces:
        mailbox.offer(1, piece)
    assert mailbox.take((1,), tag) is not None


def test_mailbox_drops_a_piece_of_the_wrong_size() -> None:
    mailbox = Mailbox(0, TOKEN)
    (frame,) = frames(Tag(0, 0, "x"), b"abc")
    for wrong in (frame[:-3], frame[:-1], frame + b"d"):
        mailbox.offer(1, wrong)
    assert mailbox.malformed == 3


def test_mailbox_counts_stale_pieces_of_a_message_that_never_ended() -> None:
    mailbox = Mailbox(0, TOKEN)
    pieces = frames(Tag(0, 0, "x"), bytes(3 * CHUNK_BYTES))
    mailbox.offer(1, pieces[0])
    mailbox.offer(1, pieces[1])
    mailbox.begin(1)
    assert mailbox.stale == 2
    mailbox.offer(1, pieces[2])
    assert mailbox.stale == 3
    assert mailbox.malformed == 0
