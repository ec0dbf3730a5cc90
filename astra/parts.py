"""A message of rows cut into parts that are each usable alone, and put together from those that arrived. Pure.

    rows ──cut_rows──► parts of up to PIECE_BYTES ──(network)──► Assembly ──► the rows that are whole
             + parity: the exclusive or of all parts; gives back one that is lost

Parts hold whole rows, as many as fit, and as evenly as can be; a row that is larger than a part is cut, and whole if
all of its parts arrived. Both sides compute the same parts from the number of rows and their size.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from astra.transport.datagram_framing import PIECE_BYTES, Label

__all__ = ["Assembly", "Part", "cut_rows", "parity_of"]

Size = Callable[[int], int]
"""Bytes of so many rows."""


class Part(NamedTuple):
    """Rows `first` to `first + rows`, or of a single large row the bytes from `offset`; `num_bytes` in all."""

    first: int
    rows: int
    offset: int
    num_bytes: int


def cut_rows(total: int, size: Size) -> tuple[Part, ...]:
    """Cut `total` rows, of which n take `size(n)` bytes, into parts of at most PIECE_BYTES; none for no rows."""
    if total == 0:
        return ()
    if size(1) > PIECE_BYTES:
        offsets = range(0, size(1), PIECE_BYTES)
        return tuple(
            Part(row, 1, offset, min(PIECE_BYTES, size(1) - offset)) for row in range(total) for offset in offsets
        )
    count = next(count for count in range(1, total + 1) if size(-(-total // count)) <= PIECE_BYTES)
    lengths = [total // count + (number < total % count) for number in range(count)]
    return tuple(
        Part(end - length, length, 0, size(length)) for end, length in zip(accumulate(lengths), lengths, strict=True)
    )


def parity_of(pieces: Sequence[bytes]) -> bytes:
    """Return the exclusive or of all pieces, each followed by zeros up to the longest."""
    longest = max(len(piece) for piece in pieces)
    result = 0
    for piece in pieces:
        result ^= int.from_bytes(piece.ljust(longest, b"\0"), "little")
    return result.to_bytes(longest, "little")


class Assembly:
    """One peer's message of one layer as it arrives."""

    def __init__(self, total: int, size: Size, *, is_fixed: bool = True):
        """Await so many rows; pieces may be shorter than `size` says where that `is_fixed` not."""
        self._is_fixed = is_fixed
        self.arrived_s: float | None = None
        """When the last piece so far came that was new; None before the first."""
        self._total = total
        self._parts = cut_rows(total, size)
        self._parts_per_chunk = -(-size(1) // PIECE_BYTES)
        self._pieces: list[bytes | None] = [None] * len(self._parts)
        self._parity: bytes | None = None
        self._missing = len(self._parts)

    @property
    def is_complete(self) -> bool:
        """Whether every row is here, or can be rebuilt."""
        return self._missing == 0

    def add(self, label: Label, piece: bytes, arrived_s: float) -> bool:
        """Take a piece, or leave it if it is here already; say whether it fits the message."""
        if label.is_parity:
            if not self._is_parity(label, piece):
                return False
            if self._parity is None:
                self._parity = piece
                self._took_at(arrived_s)
            return True
        if label.number >= len(self._parts) or not self._fits(label, piece):
            return False
        if self._pieces[label.number] is None:
            self._pieces[label.number] = piece
            self._missing -= 1
            self._took_at(arrived_s)
        return True

    def chunks(self) -> Iterator[tuple[range, bytes]]:
        """Yield rows that are whole, with their bytes, in order."""
        for number in range(0, len(self._parts), self._parts_per_chunk):
            part = self._parts[number]
            pieces = [piece for piece in self._pieces[number : number + self._parts_per_chunk] if piece is not None]
            if len(pieces) == self._parts_per_chunk:
                yield range(part.first, part.first + part.rows), b"".join(pieces)

    def _took_at(self, arrived_s: float) -> None:
        self.arrived_s = arrived_s if self.arrived_s is None else max(self.arrived_s, arrived_s)
        if self._missing == 1 and self._parity is not None:
            lost = self._pieces.index(None)
            rebuilt = parity_of([self._parity, *(piece for piece in self._pieces if piece is not None)])
            self._pieces[lost] = rebuilt[: self._parts[lost].num_bytes]
            self._missing = 0

    def _fits(self, label: Label, piece: bytes) -> bool:
        part = self._parts[label.number]
        told = (label.parts, label.total, label.first, label.rows)
        if len(piece) > part.num_bytes or (self._is_fixed and len(piece) < part.num_bytes):
            return False
        return told == (len(self._parts), self._total, part.first, part.rows)

    def _is_parity(self, label: Label, piece: bytes) -> bool:
        told = (label.parts, label.total, label.first, label.rows, len(piece))
        longest = max((part.num_bytes for part in self._parts), default=0)
        return told == (len(self._parts), self._total, 0, self._total, longest)
