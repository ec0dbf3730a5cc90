"""Bytes that tensors become: sizes, round trips, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from astra.errors import WireError
from astra.wire import Wire, decode, encode, encoded_size, pack_codes, packed_size, unpack_codes

WIRES: tuple[Wire, ...] = ("fp32", "fp16", "int8", "int4")

FP16_RELATIVE = 2**-11
"""Half a unit in the last place of fp16's 11-bit significand."""

FP16_ABSOLUTE = 2**-25
"""Half of fp16's smallest subnormal."""

STEP_SHARE = 0.5 + 1e-5
"""Rounding moves a value by half a step; fp32 arithmetic on scales adds a little."""


def rows(num_rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))


def largest_error(x_RD: torch.Tensor, wire: Wire) -> torch.Tensor:
    """The error each value may have in this format."""
    if wire == "fp32":
        return torch.zeros_like(x_RD)
    if wire == "fp16":
        return x_RD.abs() * FP16_RELATIVE + FP16_ABSOLUTE
    top = {"int8": 127, "int4": 7}[wire]
    return (x_RD.abs().amax(dim=1, keepdim=True) / top * STEP_SHARE).expand_as(x_RD)


@pytest.mark.parametrize("wire", WIRES)
@settings(deadline=None)
@given(num_rows=st.integers(0, 9), width=st.integers(1, 33), exponent=st.integers(-30, 4), seed=st.integers(0, 99))
def test_wire_round_trip_stays_within_the_formats_error(
    wire: Wire, num_rows: int, width: int, exponent: int, seed: int
) -> None:
    x_RD = rows(num_rows, width, seed) * 10.0**exponent
    buffer = encode(x_RD, wire)
    assert len(buffer) == encoded_size(wire, num_rows, width)
    decoded_RD = decode(buffer, wire, num_rows, width)
    assert decoded_RD.dtype == torch.float32
    assert decoded_RD.shape == x_RD.shape
    assert ((decoded_RD - x_RD).abs() <= largest_error(x_RD, wire)).all()


@pytest.mark.parametrize(
    ("wire", "size"),
    [("fp32", 786_432), ("fp16", 393_216), ("int8", 256 * (4 + 768)), ("int4", 256 * (4 + 384))],
)
def test_wire_size_of_a_vit_base_slice(wire: Wire, size: int) -> None:
    assert encoded_size(wire, 256, 768) == size == len(encode(rows(256, 768), wire))


def test_wire_int4_pads_each_row_of_odd_width() -> None:
    assert encoded_size("int4", 3, 5) == 3 * (4 + 3)
    x_RD = torch.tensor([[-7.0, 3.0, 7.0]])
    assert encode(x_RD, "int4")[4:] == bytes([(3 + 8) << 4 | 1, 15])
    assert torch.equal(decode(encode(x_RD, "int4"), "int4", 1, 3), x_RD)


@pytest.mark.parametrize("wire", WIRES)
def test_wire_zero_rows_stay_zero(wire: Wire) -> None:
    x_RD = rows(3, 7)
    x_RD[1] = 0
    assert (decode(encode(x_RD, wire), wire, 3, 7)[1] == 0).all()


@pytest.mark.parametrize("wire", ["int8", "int4"])
def test_wire_rows_below_the_smallest_scale_become_zero(wire: Wire) -> None:
    x_RD = torch.full((2, 3), 1.4e-45)
    assert (decode(encode(x_RD, wire), wire, 2, 3) == 0).all()


@pytest.mark.parametrize("wire", ["int8", "int4"])
def test_wire_rows_of_subnormal_scale_stay_in_range(wire: Wire) -> None:
    x_RD = torch.tensor([[2e-43, -1e-43]])
    assert decode(encode(x_RD, wire), wire, 1, 2).abs().max() <= 4e-43


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_wire_refuses_values_that_are_not_finite(wire: Wire, value: float) -> None:
    x_RD = rows(4, 5)
    x_RD[2, 3] = value
    with pytest.raises(WireError, match="every value must be finite, got 1 that are not, the first in row 2"):
        encode(x_RD, wire)


def test_wire_fp16_refuses_values_beyond_its_range() -> None:
    assert decode(encode(torch.tensor([[65504.0]]), "fp16"), "fp16", 1, 1).item() == 65504.0
    with pytest.raises(WireError, match=r"must be within ±65504, got 70000\.0; use wire fp32 or int8"):
        encode(torch.tensor([[-70000.0]]), "fp16")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_wire_takes_any_float_and_strides(dtype: torch.dtype) -> None:
    x_RD = rows(6, 4).to(dtype).T.requires_grad_()
    assert torch.equal(decode(encode(x_RD, "fp32"), "fp32", 4, 6), x_RD.detach().float())


def test_wire_decode_has_memory_of_its_own() -> None:
    buffer = bytearray(encode(rows(2, 3), "fp32"))
    decoded_RD = decode(buffer, "fp32", 2, 3)
    before_RD = decoded_RD.clone()
    buffer[:] = bytes(len(buffer))
    assert torch.equal(decoded_RD, before_RD)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("change", [-1, 1])
def test_wire_decode_refuses_another_length(wire: Wire, change: int) -> None:
    buffer = encode(rows(3, 5), wire)
    changed = buffer[:change] if change < 0 else buffer + b"\0"
    with pytest.raises(WireError, match=f"decode {wire}: buffer must be {len(buffer)} bytes, got {len(changed)}"):
        decode(changed, wire, 3, 5)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0])
def test_wire_decode_refuses_impossible_scales(scale: float) -> None:
    buffer = torch.tensor([scale]).numpy().tobytes() + bytes(4)
    with pytest.raises(WireError, match="scales must be finite and not negative"):
        decode(buffer, "int8", 1, 4)


@settings(deadline=None)
@given(st.data())
def test_codes_round_trip(data: st.DataObject) -> None:
    bits = data.draw(st.integers(1, 16))
    codes = torch.tensor(data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70)), dtype=torch.int64)
    buffer = pack_codes(codes, bits)
    assert len(buffer) == packed_size(len(codes), bits)
    assert torch.equal(unpack_codes(buffer, bits, len(codes)), codes)


def test_codes_of_a_vit_base_slice_take_320_bytes() -> None:
    codes = torch.randint(0, 1024, (256, 1), generator=torch.Generator().manual_seed(0))
    buffer = pack_codes(codes, 10)
    assert len(buffer) == 320
    assert torch.equal(unpack_codes(buffer, 10, 256), codes.reshape(-1))


def test_codes_are_packed_least_significant_bit_first() -> None:
    assert pack_codes(torch.tensor([1, 2, 1023]), 10) == (1 | 2 << 10 | 1023 << 20).to_bytes(4, "little")


@pytest.mark.parametrize(("codes", "got"), [([0, 1024], "1024"), ([5, -1], "-1"), ([70000], "70000")])
def test_codes_out_of_range_are_refused(codes: list[int], got: str) -> None:
    with pytest.raises(WireError, match=f"10-bit codes must be 0 to 1023, got {got};"):
        pack_codes(torch.tensor(codes), 10)


@pytest.mark.parametrize("bits", [0, 17])
def test_codes_refuse_impossible_widths(bits: int) -> None:
    with pytest.raises(WireError, match=f"bits must be 1 to 16, got {bits}"):
        pack_codes(torch.tensor([0]), bits)
    with pytest.raises(WireError, match=f"bits must be 1 to 16, got {bits}"):
        unpack_codes(b"", bits, 0)


@pytest.mark.parametrize("length", [3, 5])
def test_codes_refuse_another_length(length: int) -> None:
    with pytest.raises(WireError, match=f"3 codes of 10 bits: buffer must be 4 bytes, got {length}"):
        unpack_codes(bytes(length), 10, 3)


def test_codes_refuse_padding_that_is_not_zero() -> None:
    with pytest.raises(WireError, match="padding must be zero"):
        unpack_codes(b"\xff\xff", 10, 1)
