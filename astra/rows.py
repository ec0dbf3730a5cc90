"""Rows of tokens: what they are as bytes, and what has come of them. Pure.

legend: R rows (tokens or means), of all peers in order of rank where they come; V values of a row
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from astra.wire import Wire, decode, encode, encoded_size, pack_codes, packed_size, unpack_codes

__all__ = ["CarryOver", "CodeRows", "RowCodec", "Rows", "ValueRows", "Ways"]

CarryOver = Callable[[int, Tensor], Tensor]
"""Takes a layer and rows of the layer before; returns what stands for them in this layer."""


class RowCodec(Protocol):
    """How rows become bytes. Pure."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""

    def encode(self, rows_RV: Tensor) -> bytes:
        """Turn rows into bytes, of which any run of whole rows could have been made alone."""

    def decode(self, payload: bytes | memoryview, num_rows: int, values: int) -> Tensor:
        """Undo `encode`. Raises WireError if the bytes are not so many rows."""

    def size(self, num_rows: int, values: int) -> int:
        """Return the bytes of rows."""


@dataclass(frozen=True)
class CodeRows:
    """Rows of codes, packed bit by bit."""

    bits: int
    dtype: torch.dtype = torch.int64

    def encode(self, rows_RV: Tensor) -> bytes:
        """Pack the codes."""
        return pack_codes(rows_RV, self.bits)

    def decode(self, payload: bytes | memoryview, num_rows: int, values: int) -> Tensor:
        """Unpack the codes."""
        return unpack_codes(payload, self.bits, num_rows * values).view(num_rows, values)

    def size(self, num_rows: int, values: int) -> int:
        """Return the bytes of so many codes."""
        return packed_size(num_rows * values, self.bits)


@dataclass(frozen=True)
class ValueRows:
    """Rows of numbers in a wire format; several of `width` side by side for a batch."""

    wire: Wire
    width: int
    dtype: torch.dtype = torch.float32

    def encode(self, rows_RV: Tensor) -> bytes:
        """Turn the numbers into bytes."""
        return encode(rows_RV.reshape(-1, self.width), self.wire)

    def decode(self, payload: bytes | memoryview, num_rows: int, values: int) -> Tensor:
        """Turn the bytes into numbers."""
        return decode(payload, self.wire, num_rows * values // self.width, self.width).view(num_rows, values)

    def size(self, num_rows: int, values: int) -> int:
        """Return the bytes of so many numbers."""
        return encoded_size(self.wire, num_rows * values // self.width, self.width)


@dataclass(frozen=True)
class Rows:
    """What has come of the peers' rows."""

    rows_RV: Tensor
    absent_R: Tensor | None
    """True where a row is not there, and its values mean nothing; None if all are there."""


@dataclass(frozen=True)
class Ways:
    """Who sends whom how many rows."""

    counts: Sequence[int]
    """Rows of every rank."""
    to: Sequence[int]
    of: Sequence[int]

    @classmethod
    def to_first(cls, rank: int, world_size: int) -> "Ways":
        """One row of every rank to rank 0."""
        peers = range(1, world_size)
        return cls([1] * world_size, () if rank == 0 else (0,), peers if rank == 0 else ())
