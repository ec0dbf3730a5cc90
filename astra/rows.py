"""Rows of tokens: what they are as bytes, and what has come of them. Pure.

legend: R rows (tokens or means), of all peers in order of rank where they come; V values of a row
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from astra.wire import Wire, decode, encode, encoded_size, pack_codes, packed_size, unpack_codes

__all__ = ["NOTHING", "CarryOver", "CodeRows", "Known", "LayeredCodeRows", "RowCodec", "Rows", "ValueRows", "Ways"]

CarryOver = Callable[[int, Tensor], Tensor]
"""Takes a layer and rows of the layer before; returns what stands for them in this layer."""


@dataclass(frozen=True)
class Known:
    """What both ends know of rows before they travel; fewer bits will do for what can be guessed from it."""

    layer: int = 0
    first: int = 0
    """The number of the first row among those of all ranks."""
    before_RV: Tensor | None = None
    """The same tokens' rows of the layer before; None where the receiver might not have them."""


NOTHING = Known()


class RowCodec(Protocol):
    """How rows become bytes. Pure."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""

    @property
    def is_fixed(self) -> bool:
        """Whether the shape alone says how many bytes rows take, and nothing that is known matters."""

    def encode(self, rows_RV: Tensor, known: Known = NOTHING) -> bytes:
        """Turn rows into bytes, of which any run of whole rows could have been made alone."""

    def decode(self, payload: bytes | memoryview, num_rows: int, values: int, known: Known = NOTHING) -> Tensor:
        """Undo `encode`. Raises WireError if the bytes are not so many rows."""

    def size(self, num_rows: int, values: int, layer: int = 0) -> int:
        """Return the bytes of rows of a layer; the most that they may take, where that is not fixed."""


@dataclass(frozen=True)
class CodeRows:
    """Rows of codes, packed bit by bit."""

    bits: int
    dtype: torch.dtype = torch.int64
    is_fixed: bool = True

    def encode(self, rows_RV: Tensor, known: Known = NOTHING) -> bytes:
        """Pack the codes."""
        return pack_codes(rows_RV, self.bits)

    def decode(self, payload: bytes | memoryview, num_rows: int, values: int, known: Known = NOTHING) -> Tensor:
        """Unpack the codes."""
        return unpack_codes(payload, self.bits, num_rows * values).view(num_rows, values)

    def size(self, num_rows: int, values: int, layer: int = 0) -> int:
        """Return the bytes of so many codes."""
        return packed_size(num_rows * values, self.bits)


@dataclass(frozen=True)
class LayeredCodeRows:
    """Rows of codes, packed in as many bits as their layer's have."""

    bits: tuple[int, ...]
    """Of each layer."""
    dtype: torch.dtype = torch.int64
    is_fixed: bool = True

    def encode(self, rows_RV: Tensor, known: Known = NOTHING) -> bytes:
        """Pack the codes."""
        return CodeRows(self.bits[known.layer]).encode(rows_RV)

    def decode(self, payload: bytes | memoryview, num_rows: int, values: int, known: Known = NOTHING) -> Tensor:
        """Unpack the codes."""
        return CodeRows(self.bits[known.layer]).decode(payload, num_rows, values)

    def size(self, num_rows: int, values: int, layer: int = 0) -> int:
        """Return the bytes of so many codes of a layer."""
        return CodeRows(self.bits[layer]).size(num_rows, values)


@dataclass(frozen=True)
class ValueRows:
    """Rows of numbers in a wire format; several of `width` side by side for a batch."""

    wire: Wire
    width: int
    dtype: torch.dtype = torch.float32
    is_fixed: bool = True

    def encode(self, rows_RV: Tensor, known: Known = NOTHING) -> bytes:
        """Turn the numbers into bytes."""
        return encode(rows_RV.reshape(-1, self.width), self.wire)

    def decode(self, payload: bytes | memoryview, num_rows: int, values: int, known: Known = NOTHING) -> Tensor:
        """Turn the bytes into numbers."""
        return decode(payload, self.wire, num_rows * values // self.width, self.width).view(num_rows, values)

    def size(self, num_rows: int, values: int, layer: int = 0) -> int:
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

    def first_of(self, rank: int) -> int:
        """Return the number of a rank's first row among those of all ranks."""
        return sum(self.counts[:rank])

    @classmethod
    def to_first(cls, rank: int, world_size: int) -> "Ways":
        """One row of every rank to rank 0."""
        peers = range(1, world_size)
        return cls([1] * world_size, () if rank == 0 else (0,), peers if rank == 0 else ())
