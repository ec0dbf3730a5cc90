"""Bringing the input to the ranks that need it, when only the terminal has it (`placement: terminal`).

    rank 0: input --cut into bands of rows--> bytes --> rank r: band --(data.to_input)--> tensor

A row is a row of pixels, or one token id. Each rank gets the rows that its tokens are made from and nothing else; bands
of neighbours overlap where a patch row is split between them. A rank without tokens gets no message. The same for every
strategy. How a band becomes bytes is a `Codec`: `PixelCodec` here for images, `TokenCodec` for texts.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from astra.collectives import Collectives
from astra.errors import WireError
from astra.traffic import PlannedMessage
from astra.transport import Tag
from astra.wire import pack_codes, packed_size, unpack_codes

__all__ = ["Array", "Codec", "Encoding", "PixelCodec", "TokenCodec", "distribute", "plan"]

Encoding = Literal["raw", "png"]
Array = npt.NDArray[Any]
"""Pixels [B, 3, rows, columns] uint8, or token ids [B, rows] int64."""

_CHANNELS = 3
_LOW_BITS = 16


class Codec(Protocol):
    """How a part of an input becomes bytes, and back. Pure."""

    def cut(self, whole: Array, rows: range) -> Array:
        """Return the band of `rows`, without copying."""

    def encode(self, band: Array) -> bytes:
        """Turn a band into bytes."""

    def decode(self, payload: bytes | memoryview, num_rows: int) -> Array:
        """Undo `encode` for a band of `num_rows` rows. Raises WireError if the bytes are not whole such bands."""

    def size(self, num_rows: int) -> int | None:
        """Return the bytes of a band of batch 1, or None where only the content knows."""


def distribute(
    collectives: Collectives, request: int, whole: Array | None, bands: Sequence[range], codec: Codec
) -> Array:
    """Send every rank its band of rows from rank 0; return this rank's.

    Args:
        collectives: Of this rank.
        request: The request's number, for the message tag.
        whole: The whole input on rank 0; None elsewhere.
        bands: Rows of every rank, from `ModelAdapter.input_rows`; empty for a rank that needs none.
        codec: Makes bytes of them.

    Raises:
        PeerTimeoutError: Rank 0 did not deliver in time.
        WireError: What arrived is not a band of this size.
    """
    own, tag = bands[collectives.rank], Tag(request, 0, "input")
    if collectives.rank == 0:
        assert whole is not None, "rank 0 is the terminal and has the input"
        for peer in collectives.peers:
            if bands[peer]:
                collectives.transport.send(peer, tag, codec.encode(codec.cut(whole, bands[peer])))
        return codec.cut(whole, own)
    if not own:
        return codec.decode(b"", 0)
    return codec.decode(collectives.transport.receive(0, tag, collectives.timeout_s), len(own))


def plan(bands: Sequence[range], codec: Codec, whole: Array) -> list[PlannedMessage]:
    """Return what one input of batch 1 sends; where no formula gives a size, the band is encoded to learn it. Pure."""
    messages = []
    for rank, rows in enumerate(bands):
        if rank and rows:
            size = codec.size(len(rows))
            size = len(codec.encode(codec.cut(whole, rows))) if size is None else size
            messages.append(PlannedMessage(0, rank, size))
    return messages


@dataclass(frozen=True)
class TokenCodec:
    """Token ids, in as few bits each as the vocabulary needs."""

    vocabulary: int

    def cut(self, whole: Array, rows: range) -> Array:
        """Return the ids of `rows`."""
        return whole[:, rows.start : rows.stop]

    def encode(self, band: Array) -> bytes:
        """Pack the ids; of those that need more than 16 bits, the low 16 first and then the rest."""
        ids = torch.from_numpy(np.ascontiguousarray(band))
        low, high = self._bits
        packed = pack_codes(ids & ((1 << low) - 1), low)
        return packed + pack_codes(ids >> low, high) if high else packed

    def decode(self, payload: bytes | memoryview, num_rows: int) -> Array:
        """Unpack ids; the batch is 1."""
        if not num_rows:
            return np.empty((1, 0), np.int64)
        low, high = self._bits
        middle = packed_size(num_rows, low)
        ids = unpack_codes(payload[:middle], low, num_rows)
        if high:
            ids = ids | (unpack_codes(payload[middle:], high, num_rows) << low)
        elif len(payload) != middle:
            raise WireError(f"placement: {num_rows} ids must take {middle} B, got {len(payload)}; the ranks disagree")
        return ids.numpy()[None]

    def size(self, num_rows: int) -> int:
        """Return the bytes of `num_rows` ids."""
        low, high = self._bits
        return packed_size(num_rows, low) + (packed_size(num_rows, high) if high else 0)

    @property
    def _bits(self) -> tuple[int, int]:
        bits = max(1, (self.vocabulary - 1).bit_length())
        return min(bits, _LOW_BITS), max(bits - _LOW_BITS, 0)


@dataclass(frozen=True)
class PixelCodec:
    """8-bit pixels as they are before they are normalised: as they lie, or as one PNG, stacked from top to bottom."""

    image_size: int
    """Pixels per row."""
    encoding: Encoding = "raw"

    def cut(self, whole: Array, rows: range) -> Array:
        """Return the pixels of `rows`."""
        return whole[:, :, rows.start : rows.stop]

    def encode(self, band: Array) -> bytes:
        """Turn rows [B, 3, rows, image_size] into bytes."""
        if self.encoding == "raw":
            return np.ascontiguousarray(band).tobytes()
        batch, channels, num_rows, width = band.shape
        stacked_YXC = band.transpose(0, 2, 3, 1).reshape(batch * num_rows, width, channels)
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(stacked_YXC)).save(buffer, format="PNG")
        return buffer.getvalue()

    def decode(self, payload: bytes | memoryview, num_rows: int) -> Array:
        """Turn bytes into rows."""
        if not num_rows:
            return np.empty((0, _CHANNELS, 0, self.image_size), np.uint8)
        flat = self._png_values(payload) if self.encoding == "png" else np.frombuffer(payload, np.uint8)
        band_values = _CHANNELS * num_rows * self.image_size
        if flat.size == 0 or flat.size % band_values:
            raise WireError(
                f"placement: {self.encoding} band must hold a multiple of {band_values} values ({num_rows} rows of "
                f"{self.image_size} pixels), got {flat.size}; the ranks disagree about the partition"
            )
        if self.encoding == "raw":
            return flat.reshape(-1, _CHANNELS, num_rows, self.image_size)
        return flat.reshape(-1, num_rows, self.image_size, _CHANNELS).transpose(0, 3, 1, 2)

    def size(self, num_rows: int) -> int | None:
        """Return the bytes of raw rows; those of a PNG only the picture knows."""
        return None if self.encoding == "png" else _CHANNELS * num_rows * self.image_size

    def _png_values(self, payload: bytes | memoryview) -> npt.NDArray[np.uint8]:
        """Return the picture's values, flat, row by row with the colours innermost."""
        try:
            with Image.open(io.BytesIO(payload), formats=["PNG"]) as picture:
                pixels_YXC = np.asarray(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise WireError(f"placement: band must be a PNG, got {error}; the message is damaged") from error
        if pixels_YXC.shape[1] != self.image_size:
            raise WireError(
                f"placement: PNG band must be {self.image_size} pixels wide, got {pixels_YXC.shape[1]}; "
                "the ranks disagree about the image size"
            )
        return pixels_YXC.reshape(-1)
