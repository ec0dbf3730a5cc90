"""Headers of datagrams, and messages cut into parts that are usable alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astra.errors import TransportError
from astra.parts import Assembly, cut_rows, parity_of
from astra.rows import CodeRows, RowCodec, ValueRows
from astra.transport.datagram_framing import (
    DATAGRAM_HEADER_BYTES,
    MAX_ROWS,
    PIECE_BYTES,
    Datagram,
    Label,
    decode_datagram,
    encode_header,
    is_sealed,
    seal,
)

UINT16, UINT32 = st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)
ETHERNET_PAYLOAD = 1500
KEY = b"k" * 32


@st.composite
def labels(draw: st.DrawFn) -> Label:
    parts = draw(st.integers(1, MAX_ROWS))
    total = draw(st.integers(1, MAX_ROWS))
    first = draw(st.integers(0, total - 1))
    return Label(
        draw(UINT32),
        draw(UINT16),
        draw(st.integers(0, parts)),
        parts,
        first,
        draw(st.integers(1, total - first)),
        total,
    )


@given(UINT32, UINT16, st.integers(0, 255), labels(), st.binary(max_size=50))
def test_header_round_trip(token: int, epoch: int, sender: int, label: Label, piece: bytes) -> None:
    packet = seal(KEY, encode_header(token, epoch, sender, label), piece)
    assert len(packet) == DATAGRAM_HEADER_BYTES + len(piece)
    assert decode_datagram(packet, 1.5) == Datagram(token, epoch, sender, label, piece, 1.5)
    assert is_sealed(KEY, packet)


@given(labels(), st.binary(max_size=50), st.data())
def test_tag_is_wrong_whatever_bit_is_changed(label: Label, piece: bytes, data: st.DataObject) -> None:
    packet = bytearray(seal(KEY, encode_header(1, 0, 0, label), piece))
    position = data.draw(st.integers(0, 8 * len(packet) - 1))
    packet[position // 8] ^= 1 << position % 8
    assert not is_sealed(KEY, bytes(packet))


@given(st.binary(max_size=PIECE_BYTES + 100))
def test_header_of_any_bytes_is_read_or_refused(packet: bytes) -> None:
    datagram = decode_datagram(packet, 0.0)
    if datagram is not None:
        again = encode_header(datagram.token, datagram.epoch, datagram.sender, datagram.label)
        assert packet.startswith(again)
        assert packet.endswith(datagram.piece)


@given(labels(), st.integers(0, DATAGRAM_HEADER_BYTES - 1))
def test_header_cut_short_is_refused(label: Label, length: int) -> None:
    assert decode_datagram(seal(KEY, encode_header(1, 0, 0, label), b"")[:length], 0.0) is None


def test_header_refuses_pieces_that_no_packet_carries() -> None:
    header = seal(KEY, encode_header(1, 0, 0, Label(0, 0, 0, 1, 0, 1, 1)), b"")
    assert decode_datagram(header + bytes(PIECE_BYTES), 0.0) is not None
    assert decode_datagram(header + bytes(PIECE_BYTES + 1), 0.0) is None
    assert 20 + 8 + DATAGRAM_HEADER_BYTES + PIECE_BYTES < ETHERNET_PAYLOAD


@pytest.mark.parametrize(
    "label",
    [Label(0, 0, 0, 1, 0, 0, 4), Label(0, 0, 0, 1, 2, 3, 4), Label(0, 0, 2, 1, 0, 1, 4), Label(0, 0, 0, 0, 0, 1, 1)],
)
def test_header_refuses_impossible_ranges(label: Label) -> None:
    assert decode_datagram(seal(KEY, encode_header(1, 0, 0, label), b""), 0.0) is None


def test_header_says_what_does_not_fit() -> None:
    with pytest.raises(TransportError, match=r"at most 65535 rows, got .*total=70000"):
        encode_header(1, 0, 3, Label(0, 0, 0, 1, 0, 1, 70_000))


SIZES = st.integers(1, 4000)


@given(st.integers(0, 700), SIZES)
def test_parts_cover_every_row_once_and_fit_a_packet(total: int, row_bytes: int) -> None:
    parts = cut_rows(total, lambda n: n * row_bytes)
    assert all(0 < part.num_bytes <= PIECE_BYTES for part in parts)
    assert sum(part.num_bytes for part in parts) == total * row_bytes
    starts = [part for part in parts if part.offset == 0]
    assert [row for part in starts for row in range(part.first, part.first + part.rows)] == list(range(total))
    if len({part.rows for part in parts}) > 1:
        assert max(part.rows for part in parts) - min(part.rows for part in parts) == 1


@pytest.mark.parametrize(
    ("codec", "total", "values", "count"),
    [(CodeRows(10), 256, 1, 1), (CodeRows(10), 256, 32, 8), (ValueRows("int8", 768), 10, 768, 10)],
    ids=["256 tokens of one code", "256 tokens of 32 codes", "ten means in int8"],
)
def test_parts_of_the_models_at_hand(codec: RowCodec, total: int, values: int, count: int) -> None:
    assert len(cut_rows(total, lambda n: codec.size(n, values))) == count


CODECS = [(CodeRows(10), 3, 12), (CodeRows(4), 1, 300), (CodeRows(16), 1000, 5)] + [
    (ValueRows(wire, 64), 128, 9) for wire in ("fp32", "fp16", "int8", "int4")
]


@pytest.mark.parametrize(("codec", "values", "total"), CODECS, ids=str)
@pytest.mark.parametrize("lost", [None, 0, -1], ids=["nothing lost", "first lost", "last lost"])
def test_parts_are_usable_alone(codec: RowCodec, values: int, total: int, lost: int | None) -> None:
    rows_RV, assembly, labelled = cut_up(codec, values, total)
    for label, piece in labelled if lost is None else [each for each in labelled if each is not labelled[lost]]:
        assert assembly.add(label, piece, 0.0)
    assert assembly.is_complete == (lost is None)
    came = 0
    for rows, payload in assembly.chunks():
        expected = codec.decode(codec.encode(rows_RV[rows.start : rows.stop]), len(rows), values)
        assert torch.equal(codec.decode(payload, len(rows), values), expected)
        came += len(rows)
    row_of = labelled[lost or 0][0]
    assert came == (total if lost is None else total - row_of.rows)


def cut_up(codec: RowCodec, values: int, total: int) -> tuple[torch.Tensor, Assembly, list[tuple[Label, bytes]]]:
    generator = torch.Generator().manual_seed(0)
    if isinstance(codec, CodeRows):
        rows_RV = torch.randint(0, 1 << codec.bits, (total, values), generator=generator)
    else:
        rows_RV = torch.randn(total, values, generator=generator)

    def size(count: int) -> int:
        return codec.size(count, values)

    labelled = []
    parts = cut_rows(total, size)
    for number, part in enumerate(parts):
        payload = codec.encode(rows_RV[part.first : part.first + part.rows])
        label = Label(0, 0, number, len(parts), part.first, part.rows, total)
        labelled.append((label, payload[part.offset : part.offset + part.num_bytes]))
    return rows_RV, Assembly(total, size), labelled


@pytest.mark.parametrize(("codec", "values", "total"), CODECS, ids=str)
def test_parity_gives_back_any_one_part(codec: RowCodec, values: int, total: int) -> None:
    _, _, labelled = cut_up(codec, values, total)
    parity = (Label(0, 0, len(labelled), len(labelled), 0, total, total), parity_of([piece for _, piece in labelled]))
    for lost in range(len(labelled)):
        _, assembly, _ = cut_up(codec, values, total)
        for label, piece in [*(each for each in labelled if each is not labelled[lost]), parity]:
            assert not assembly.is_complete
            assert assembly.add(label, piece, 0.0)
        assert assembly.is_complete
        assert b"".join(payload for _, payload in assembly.chunks()) == b"".join(piece for _, piece in labelled)


def test_parity_may_come_first_and_twice() -> None:
    _, assembly, labelled = cut_up(CodeRows(16), 700, 3)
    parity = Label(0, 0, len(labelled), len(labelled), 0, 3, 3), parity_of([piece for _, piece in labelled])
    for label, piece in [parity, parity, *labelled[1:]]:
        assert assembly.add(label, piece, 0.0)
    assert assembly.is_complete


def test_assembly_ignores_copies_and_refuses_other_messages() -> None:
    _, assembly, labelled = cut_up(CodeRows(10), 32, 256)
    label, piece = labelled[0]
    assert assembly.add(label, piece, 1.0)
    assert assembly.add(label, piece, 5.0)
    assert assembly.arrived_s == 1.0
    others = [label._replace(total=255), label._replace(first=1), label._replace(number=7), label._replace(parts=9)]
    assert not any(assembly.add(other, piece, 0.0) for other in others)
    assert not assembly.add(label, piece[:-1], 0.0)
    assert not assembly.add(label._replace(number=label.parts), piece, 0.0)
    assert not Assembly(0, lambda n: n).add(label, piece, 0.0)


def test_assembly_of_nothing_is_complete() -> None:
    assembly = Assembly(0, lambda n: n)
    assert assembly.is_complete
    assert list(assembly.chunks()) == []
