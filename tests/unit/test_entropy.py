"""Entropy-coded codes: exact, never longer than packed, readable alone, and refused when damaged."""

import contextlib
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datagram_worlds import TIMEOUT_S, ports
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from astra.code_statistics import count_codes_of
from astra.code_tables import TABLES_FILE, CodeTables, load_tables, save_tables
from astra.codebook import CodebookSpec, GroupedCodebook
from astra.coded_rows import CODER_OVERHEAD_BYTES, CodedRows
from astra.collectives import Collectives
from astra.datagram_exchange import DatagramExchange
from astra.entropy import PROBABILITY_TOTAL, CodeCoder
from astra.errors import ConfigError, WireError
from astra.parts import Assembly, cut_rows
from astra.rows import CodeRows, Known, Ways
from astra.transport import Tag
from astra.transport.datagram_framing import Label
from astra.transport.inproc import connect
from astra.transport_config import DatagramConfig
from astra.wire import packed_size

pytest.importorskip("constriction")

LAYERS, GROUPS, CODEWORDS, POSITIONS, BITS = 3, 2, 16, 12, 4
SPEC = CodebookSpec(LAYERS, 8, GROUPS, CODEWORDS)
SLACK = 0.02
"""Of the expected bytes; codes are drawn from the very shares that were counted, 4,800 of a layer."""
NUM_DAMAGED = 2_000
"""One in 65,536 would pass; these are always the same."""


def correlated(inputs: int, seed: int = 0) -> list[np.ndarray]:
    """Return codes [inputs · P, G] of every layer: of layer 0 by position, of the others mostly those before."""
    rng = np.random.default_rng(seed)
    positions = np.tile(np.arange(POSITIONS), inputs)[:, None]
    codes = [(positions + rng.integers(0, 2, (len(positions), GROUPS))) % CODEWORDS]
    for _ in range(1, LAYERS):
        changed = rng.random(codes[-1].shape) < 0.2
        codes.append(np.where(changed, rng.integers(0, CODEWORDS, codes[-1].shape), (codes[-1] * 5) % CODEWORDS))
    return codes


@pytest.fixture(scope="module")
def tables() -> CodeTables:
    generator = torch.Generator().manual_seed(0)
    books = [GroupedCodebook(torch.randn(GROUPS, CODEWORDS, 4, generator=generator)) for _ in range(LAYERS)]
    return count_codes_of(correlated(400), books, POSITIONS, seed=0)


@pytest.fixture(scope="module")
def codec(tables: CodeTables) -> CodedRows:
    return CodedRows(BITS, tables)


def rows(layer: int, inputs: int = 1, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return codes of one layer and of the one before."""
    codes = correlated(inputs, seed)
    return torch.from_numpy(codes[layer]), torch.from_numpy(codes[layer - 1])


def side_by_side(inputs: int) -> list[Tensor]:
    """Return codes [P, inputs · G] of every layer, of messages so long that the coder's own bytes hardly count."""
    return [
        torch.from_numpy(layer.reshape(inputs, POSITIONS, GROUPS).swapaxes(0, 1).reshape(POSITIONS, -1))
        for layer in correlated(inputs, seed=2)
    ]


@given(
    codes=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2)), max_size=200),
    weights=st.lists(st.integers(1, 10_000), min_size=24, max_size=24),
)
def test_coder_gives_back_any_codes_under_any_probabilities(codes: list[tuple[int, int]], weights: list[int]) -> None:
    shares_SK = np.array(weights).reshape(3, 8)
    probabilities_SK = 1 + shares_SK * (PROBABILITY_TOTAL - 8) // shares_SK.sum(axis=1, keepdims=True)
    probabilities_SK[:, 0] += PROBABILITY_TOTAL - probabilities_SK.sum(axis=1)
    coder = CodeCoder(probabilities_SK.astype(np.uint16))
    codes_X, contexts_X = (np.array([pair[index] for pair in codes], np.int64) for index in (0, 1))
    payload = coder.encode(codes_X, contexts_X)
    assert np.array_equal(coder.decode(payload, contexts_X), codes_X)


@given(st.data())
def test_rows_come_back_exactly_whatever_is_known(codec: CodedRows, data: st.DataObject) -> None:
    count, batch = data.draw(st.integers(0, POSITIONS)), data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    own, before = (torch.from_numpy(rng.integers(0, CODEWORDS, (count, batch * GROUPS))) for _ in range(2))
    layer = data.draw(st.integers(0, LAYERS - 1))
    known = Known(layer, data.draw(st.integers(0, POSITIONS - count)), data.draw(st.sampled_from([None, before])))
    payload = codec.encode(own, known)
    assert len(payload) <= codec.size(count, batch * GROUPS) == packed_size(own.numel(), BITS)
    assert torch.equal(codec.decode(payload, count, batch * GROUPS, known), own)


@pytest.mark.parametrize("layer", [1, 2])
def test_what_is_known_saves_bits(codec: CodedRows, layer: int) -> None:
    own, before = rows(layer)
    after, alone = (len(codec.encode(own, Known(layer, 0, known))) for known in (before, None))
    assert after < alone <= codec.size(*own.shape)


def test_expected_bits_are_what_codes_take(codec: CodedRows, tables: CodeTables) -> None:
    codes = side_by_side(200)
    taken = [
        len(codec.encode(own, Known(layer, 0, codes[layer - 1] if layer else None))) for layer, own in enumerate(codes)
    ]
    expected = tables.expected_bits(alone=False) * sum(own.numel() for own in codes) / 8
    assert sum(taken) == pytest.approx(expected + LAYERS * CODER_OVERHEAD_BYTES, rel=SLACK)


def test_rows_that_nothing_is_known_of_are_packed(codec: CodedRows) -> None:
    uniform = torch.from_numpy(np.random.default_rng(5).integers(0, CODEWORDS, (POSITIONS, GROUPS)))
    assert codec.encode(uniform) == CodeRows(BITS).encode(uniform)
    assert codec.encode(uniform[:1]) == CodeRows(BITS).encode(uniform[:1]), "one row could be part of a cut one"


def test_tables_come_back_from_disk(tables: CodeTables, tmp_path: Path) -> None:
    save_tables(tmp_path, tables)
    again = load_tables(tmp_path, SPEC, POSITIONS)
    for one, other in zip((*tables.by_position, *tables.by_code), (*again.by_position, *again.by_code), strict=True):
        assert np.array_equal(one.classes_GN, other.classes_GN)
        assert np.array_equal(one.probabilities_GCK, other.probabilities_GCK)
        assert one.bits == other.bits


def test_tables_of_other_sizes_or_damaged_are_refused(tables: CodeTables, tmp_path: Path) -> None:
    save_tables(tmp_path, tables)
    with pytest.raises(
        ConfigError, match=r"layer\.0\.position\.classes must be uint16 \(2, 13\), got uint16 \(2, 12\)"
    ):
        load_tables(tmp_path, SPEC, POSITIONS + 1)
    with pytest.raises(ConfigError, match=r"probabilities must be uint16 \(2, classes, 32\)"):
        load_tables(tmp_path, CodebookSpec(LAYERS, 8, GROUPS, 32), POSITIONS)
    with pytest.raises(ConfigError, match=r"layer\.3\.code\.bits must be there"):
        load_tables(tmp_path, CodebookSpec(LAYERS + 1, 8, GROUPS, CODEWORDS), POSITIONS)
    tables.by_code[0].probabilities_GCK[0, 0, 0] += 1
    save_tables(tmp_path, tables)
    tables.by_code[0].probabilities_GCK[0, 0, 0] -= 1
    with pytest.raises(ConfigError, match=r"layer\.1\.code\.probabilities must be at least 1 and add up to 65536"):
        load_tables(tmp_path, SPEC, POSITIONS)
    path = tmp_path / TABLES_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"codes\.safetensors: file must be whole safetensors.*run `astra fit`"):
        load_tables(tmp_path, SPEC, POSITIONS)


def test_payloads_of_another_length_are_refused(codec: CodedRows) -> None:
    own, before = rows(1)
    known = Known(1, 0, before)
    payload = codec.encode(own, known)
    assert len(payload) < codec.size(*own.shape)
    with pytest.raises(WireError, match="bytes must be whole words of 4 and 2 of check, got"):
        codec.decode(payload[:-1], *own.shape, known)
    with pytest.raises(WireError, match="bytes must be 24 codes as they were sent, got others"):
        codec.decode(payload[4:], *own.shape, known)
    with pytest.raises(WireError, match="buffer must be 12 bytes, got 13"):
        codec.decode(bytes(13), *own.shape, known)


def test_damage_is_found(codec: CodedRows) -> None:
    own, before = rows(1)
    known, rng = Known(1, 0, before), random.Random(3)
    payload = codec.encode(own, known)
    for _ in range(NUM_DAMAGED):
        damaged = bytearray(payload)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        with contextlib.suppress(WireError):
            assert torch.equal(codec.decode(bytes(damaged), *own.shape, known), own), "bits that say nothing"


def with_other_tables(tables: CodeTables) -> CodedRows:
    """Return a codec whose tables are as good, but not the same."""
    turned = [
        tuple(replace(given, probabilities_GCK=given.probabilities_GCK[..., ::-1]) for given in way)
        for way in (tables.by_position, tables.by_code)
    ]
    return CodedRows(BITS, CodeTables(*turned))


@pytest.mark.parametrize("layer", range(LAYERS))
def test_codes_by_other_tables_or_after_other_codes_are_refused(
    codec: CodedRows, tables: CodeTables, layer: int
) -> None:
    own, before = rows(layer)
    known = Known(layer, 0, before if layer else None)
    payload = codec.encode(own, known)
    with pytest.raises(WireError, match="ranks have different tables: use the same codebook folder everywhere"):
        with_other_tables(tables).decode(payload, *own.shape, known)
    if layer:
        with pytest.raises(WireError, match="got others"):
            codec.decode(payload, *own.shape, replace(known, before_RV=(before + 1) % CODEWORDS))


def test_datagrams_by_other_tables_count_as_malformed_and_their_rows_as_missing(
    codec: CodedRows, tables: CodeTables
) -> None:
    own, half = side_by_side(20)[0], POSITIONS // 2
    with ports(2) as (opened, _sockets):
        pending = []
        for rank, (transport, port) in enumerate(zip(connect(2), opened, strict=True)):
            ways = Ways([half, half], (1 - rank,), (1 - rank,))
            read_by = codec if rank == 0 else with_other_tables(tables)
            collectives = Collectives(transport, TIMEOUT_S, port)
            exchange = DatagramExchange(DatagramConfig(), collectives, read_by, ways, lambda _, rows_RV: rows_RV)
            pending.append(exchange.start(Tag(0, 0, "codes"), own[rank * half :][:half]))
        packed, coded = (each.wait().absent_R for each in pending)
        assert packed is None, "tables that do not suit the codes do not make them shorter"
        assert coded is not None
        assert bool(coded.all())
        assert [(port.traffic.received, port.traffic.malformed) for port in opened] == [(1, 0), (1, 1)]


@given(st.binary(max_size=40))
def test_any_bytes_give_codes_or_a_wire_error(codec: CodedRows, payload: bytes) -> None:
    before = torch.zeros(POSITIONS, GROUPS, dtype=torch.int64)
    try:
        codes = codec.decode(payload, POSITIONS, GROUPS, Known(1, 0, before))
    except WireError:
        return
    assert codes.shape == (POSITIONS, GROUPS)
    assert 0 <= int(codes.min()) <= int(codes.max()) < CODEWORDS


def test_parts_are_readable_alone_and_may_be_short(codec: CodedRows) -> None:
    own, _ = rows(0)
    parts = cut_rows(len(own), lambda n: codec.size(n, GROUPS))
    assembly = Assembly(len(own), lambda n: codec.size(n, GROUPS), is_fixed=codec.is_fixed)
    for number, part in enumerate(parts):
        piece = codec.encode(own[part.first : part.first + part.rows], Known(0, part.first))
        assert len(piece) < part.num_bytes
        assert assembly.add(Label(0, 0, number, len(parts), part.first, part.rows, len(own)), piece, 0.0)
    assert assembly.is_complete
    for span, payload in assembly.chunks():
        assert torch.equal(codec.decode(payload, len(span), GROUPS, Known(0, span.start)), own[span.start : span.stop])
    label = Label(0, 0, 0, len(parts), 0, parts[0].rows, len(own))
    assert not Assembly(len(own), lambda n: codec.size(n, GROUPS)).add(label, b"short", 0.0), "packed ones are whole"
