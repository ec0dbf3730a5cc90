"""Rows of codes in as few bits as their tables allow: what `rows.CodeRows` does, but entropy-coded.

    codes [R, B · G] ──contexts: class of what is known──► CodeCoder ──► bytes, fewer than packed ones
                                                        └─ not fewer, or one row: packed bit by bit

What is shorter than packed codes is entropy-coded, what is as long is packed: nothing has to be marked, and rows never
take more than they would without.

    legend: R rows (tokens), V values of a row (B · G), B batch, G groups, C classes, N things that may be known
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from astra.code_tables import CodeTables, Given
from astra.entropy import CodeCoder
from astra.rows import NOTHING, Known
from astra.wire import pack_codes, packed_size, unpack_codes

__all__ = ["CODER_OVERHEAD_BYTES", "CodedRows"]

CODER_OVERHEAD_BYTES = 5.0
"""What a message takes beyond the bits of its codes, on average: three since words are of four bytes, two of check."""


@dataclass(frozen=True)
class _Way:
    """One layer's coder given one thing that is known."""

    given: Given
    coder: CodeCoder

    @classmethod
    def of(cls, given: Given) -> "_Way":
        num_codes = given.probabilities_GCK.shape[-1]
        return cls(given, CodeCoder(given.probabilities_GCK.reshape(-1, num_codes)))

    def contexts(self, known_RV: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the coder's context of every code, from what is known of it."""
        num_groups, num_classes, _ = self.given.probabilities_GCK.shape
        groups_V = np.arange(known_RV.shape[1]) % num_groups
        contexts_RV: npt.NDArray[np.int64] = groups_V * num_classes + self.given.classes_GN[groups_V, known_RV]
        return contexts_RV.ravel()


class CodedRows:
    """Rows of codes, entropy-coded by the tables of their layer."""

    dtype = torch.int64
    is_fixed = False

    def __init__(self, bits: int, tables: CodeTables):
        """Take the bits of a packed code, and the tables of all layers."""
        self._bits = bits
        self._by_position = [_Way.of(given) for given in tables.by_position]
        self._by_code = [_Way.of(given) for given in tables.by_code]

    def encode(self, rows_RV: Tensor, known: Known = NOTHING) -> bytes:
        """Return whatever is shorter."""
        packed_bytes = self.size(*rows_RV.shape)
        if len(rows_RV) > 1:
            way, contexts_X = self._contexts(known, *rows_RV.shape)
            coded = way.coder.encode(rows_RV.numpy(force=True).ravel(), contexts_X)
            if len(coded) < packed_bytes:
                return coded
        return pack_codes(rows_RV, self._bits)

    def decode(self, payload: bytes | memoryview, num_rows: int, values: int, known: Known = NOTHING) -> Tensor:
        """Undo `encode`."""
        if num_rows <= 1 or len(payload) >= self.size(num_rows, values):
            return unpack_codes(payload, self._bits, num_rows * values).view(num_rows, values)
        way, contexts_X = self._contexts(known, num_rows, values)
        return torch.from_numpy(way.coder.decode(payload, contexts_X)).view(num_rows, values)

    def size(self, num_rows: int, values: int, layer: int = 0) -> int:
        """Return the most bytes that so many codes take."""
        return packed_size(num_rows * values, self._bits)

    def _contexts(self, known: Known, num_rows: int, values: int) -> tuple[_Way, npt.NDArray[np.int64]]:
        """Return the coder of what is known, and the context of every code."""
        if known.before_RV is not None and known.layer > 0:
            way = self._by_code[known.layer - 1]
            return way, way.contexts(known.before_RV.numpy(force=True))
        way = self._by_position[known.layer]
        positions_R1 = np.arange(known.first, known.first + num_rows)[:, None]
        return way, way.contexts(np.broadcast_to(positions_R1, (num_rows, values)))
