"""Tensors as bytes, and back: floats of several widths, quantised rows, bit-packed codes.

    fp32   4 bytes a value, exact                 R·D values
    fp16   2 bytes a value, rounded to nearest    R·D values
    int8   1 byte a value, one scale a row        R scales in fp32, R·D values in -127…127
    int4   half a byte a value, one scale a row   R scales in fp32, R·⌈D/2⌉ bytes: value + 8, low half first

A row is a token. Its scale is its largest magnitude divided by 127 or 7, so quantisation is symmetric and a
row's error is at most half its scale. A row so small that its scale is 0 in fp32 (below 1e-43) becomes
zeros. Everything is little-endian; a size is a function of the shape alone. Encoding refuses values that
are not finite, in every format, and fp16 refuses values that it would turn into infinity: a broken
activation is reported where it appears.

Tensor legend: R rows (tokens), D width. No I/O, no headers: both sides know the shape.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from astra.errors import WireError

__all__ = ["Wire", "decode", "encode", "encoded_size", "pack_codes", "packed_size", "unpack_codes"]

Wire = Literal["fp32", "fp16", "int8", "int4"]

Buffer = bytes | bytearray | memoryview

_SCALE_BYTES = 4
_MAX_CODE_BITS = 16
_TOP = {"int8": 127, "int4": 7}


def encoded_size(wire: Wire, num_rows: int, width: int) -> int:
    """Give the bytes that `encode` makes of a (num_rows, width) tensor."""
    match wire:
        case "fp32":
            return num_rows * width * 4
        case "fp16":
            return num_rows * width * 2
        case "int8":
            return num_rows * (_SCALE_BYTES + width)
        case "int4":
            return num_rows * (_SCALE_BYTES + (width + 1) // 2)


def encode(x_RD: Tensor, wire: Wire) -> bytes:
    """Turn rows into bytes.

    Args:
        x_RD: any floating type, any device; D ≥ 1.
        wire: the format.

    Raises:
        WireError: a value is not finite, or beyond fp16's range when that is the format.
    """
    num_rows, width = x_RD.shape
    assert width > 0, "rows must not be empty"
    x_RD = x_RD.detach().to(device="cpu", dtype=torch.float32).contiguous()
    if num_rows == 0:
        return b""
    _check_finite(x_RD)
    if wire == "fp32":
        return _to_bytes(x_RD.numpy(), "<f4")
    if wire == "fp16":
        half_RD = x_RD.half()
        if not torch.isfinite(half_RD).all():
            raise WireError(
                f"encode fp16: values must be within ±65504, got {float(x_RD.abs().max())!r}; "
                "use wire fp32 or int8 for this model"
            )
        return _to_bytes(half_RD.numpy(), "<f2")
    return _encode_integers(x_RD, wire)


def _encode_integers(x_RD: Tensor, wire: Literal["int8", "int4"]) -> bytes:
    top = _TOP[wire]
    scale_R1 = x_RD.abs().amax(dim=1, keepdim=True) / top
    divisor_R1 = torch.where(scale_R1 > 0, scale_R1, torch.inf)
    q_RD = (x_RD / divisor_R1).round_().clamp_(-top, top).to(torch.int8).numpy()
    body = q_RD.tobytes() if wire == "int8" else _pack_halves(q_RD)
    return _to_bytes(scale_R1.numpy(), "<f4") + body


def _check_finite(x_RD: Tensor) -> None:
    low, high = torch.aminmax(x_RD)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        bad = ~torch.isfinite(x_RD)
        row = int(bad.any(dim=1).nonzero()[0])
        raise WireError(
            f"encode: every value must be finite, got {int(bad.sum())} that are not, the first in row {row}; "
            "look for the layer that made them"
        )


def _to_bytes(values: npt.NDArray[np.generic], dtype: str) -> bytes:
    return values.astype(dtype, copy=False).tobytes()


def _pack_halves(q_RD: npt.NDArray[np.int8]) -> bytes:
    """Put two values of -7…7 in a byte; a row of odd width ends with half a byte of padding."""
    shifted_RD = (q_RD + np.int8(8)).view(np.uint8)
    if shifted_RD.shape[1] % 2:
        shifted_RD = np.pad(shifted_RD, ((0, 0), (0, 1)))
    return (shifted_RD[:, 0::2] | (shifted_RD[:, 1::2] << 4)).tobytes()


def _unpack_halves(packed_RW: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.int8]:
    q_RD = np.empty((packed_RW.shape[0], packed_RW.shape[1] * 2), np.int8)
    q_RD[:, 0::2] = packed_RW & 0x0F
    q_RD[:, 1::2] = packed_RW >> 4
    q_RD -= 8
    return q_RD[:, :width]


def decode(buffer: Buffer, wire: Wire, num_rows: int, width: int) -> Tensor:
    """Turn bytes back into rows.

    Returns:
        x_RD fp32 with memory of its own.

    Raises:
        WireError: the buffer is not exactly as long as the shape asks for, or a scale is negative or not
        finite.
    """
    _check_length(f"decode {wire}", buffer, encoded_size(wire, num_rows, width))
    if wire == "fp32":
        return torch.from_numpy(np.frombuffer(buffer, "<f4").astype(np.float32).reshape(num_rows, width))
    if wire == "fp16":
        return torch.from_numpy(np.frombuffer(buffer, "<f2").astype(np.float32).reshape(num_rows, width))
    scale_R1 = np.frombuffer(buffer, "<f4", count=num_rows).astype(np.float32).reshape(num_rows, 1)
    if not (np.isfinite(scale_R1).all() and (scale_R1 >= 0).all()):
        raise WireError(f"decode {wire}: scales must be finite and not negative; the bytes are damaged")
    offset = num_rows * _SCALE_BYTES
    if wire == "int8":
        q_RD = np.frombuffer(buffer, np.int8, offset=offset).reshape(num_rows, width)
    else:
        packed = np.frombuffer(buffer, np.uint8, offset=offset).reshape(num_rows, (width + 1) // 2)
        q_RD = _unpack_halves(packed, width)
    return torch.from_numpy(q_RD.astype(np.float32) * scale_R1)


def packed_size(count: int, bits: int) -> int:
    """Give the bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


def pack_codes(codes: Tensor, bits: int) -> bytes:
    """Put codes one after the other, `bits` bits each, the least significant bit first.

    Args:
        codes: integers of any shape, in row-major order, each below 2**bits.
        bits: 1 to 16.

    Raises:
        WireError: a code does not fit, or `bits` is out of range.
    """
    _check_bits(bits)
    flat = codes.detach().reshape(-1).numpy(force=True)
    if flat.size == 0:
        return b""
    low, high = int(flat.min()), int(flat.max())
    if low < 0 or high >= 1 << bits:
        raise WireError(
            f"pack_codes: {bits}-bit codes must be 0 to {(1 << bits) - 1}, got {low if low < 0 else high}; "
            "use as many bits as the codebook needs"
        )
    as_bytes = flat.astype("<u2").view(np.uint8).reshape(-1, 2)
    code_bits = np.unpackbits(as_bytes, axis=1, count=bits, bitorder="little")
    return np.packbits(code_bits, bitorder="little").tobytes()


def unpack_codes(buffer: Buffer, bits: int, count: int) -> Tensor:
    """Read codes back.

    Returns:
        (count,) int64.

    Raises:
        WireError: the buffer is not exactly as long as `count` codes, its padding is not zero, or `bits` is
        out of
            range.
    """
    _check_bits(bits)
    _check_length(f"unpack_codes of {count} codes of {bits} bits", buffer, packed_size(count, bits))
    all_bits = np.unpackbits(np.frombuffer(buffer, np.uint8), bitorder="little")
    if all_bits[count * bits :].any():
        raise WireError("unpack_codes: padding must be zero; the sender packs another number of codes")
    code_bits = np.zeros((count, _MAX_CODE_BITS), np.uint8)
    code_bits[:, :bits] = all_bits[: count * bits].reshape(count, bits)
    codes = np.packbits(code_bits, axis=1, bitorder="little").view("<u2").reshape(count)
    return torch.from_numpy(codes.astype(np.int64))


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= _MAX_CODE_BITS:
        raise WireError(
            f"codes: bits must be 1 to {_MAX_CODE_BITS}, got {bits!r}; use codebooks of up to 65536 codewords"
        )


def _check_length(where: str, buffer: Buffer, expected: int) -> None:
    length = memoryview(buffer).nbytes
    if length != expected:
        raise WireError(
            f"{where}: buffer must be {expected} bytes, got {length}; both sides must know the same shape and format"
        )
