"""Bringing the input to the ranks that need it, when only the terminal has it (`placement: terminal`).

    rank 0: uint8 image --cut into bands of rows--> raw or PNG --> rank r: uint8 band --(data.to_input)--> floats

Each rank gets the rows that cover its tokens' patches and nothing else; bands of neighbours overlap where a patch row
is split between them. A rank without tokens gets no message. The same for every strategy. Pixels travel before they
are normalised, as the 8-bit numbers they are.
"""

import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from astra.collectives import Collectives
from astra.errors import WireError
from astra.traffic import PlannedMessage
from astra.transport import Tag

__all__ = ["Encoding", "decode_band", "distribute", "encode_band", "plan"]

Encoding = Literal["raw", "png"]
Pixels = npt.NDArray[np.uint8]

_CHANNELS = 3


def distribute(
    collectives: Collectives,
    request: int,
    pixels_BCYX: Pixels | None,
    bands: Sequence[range],
    *,
    image_size: int,
    encoding: Encoding,
) -> Pixels:
    """Send every rank its band of rows from rank 0; return this rank's, [B, 3, rows, image_size].

    Args:
        collectives: Of this rank.
        request: The request's number, for the message tag.
        pixels_BCYX: The whole image on rank 0; None elsewhere.
        bands: Pixel rows of every rank, from `ModelAdapter.input_rows`; empty for a rank that needs none.
        image_size: Pixels per row.
        encoding: `raw` or `png`, both lossless.

    Raises:
        PeerTimeoutError: Rank 0 did not deliver in time.
        WireError: What arrived is not a band of this size.
    """
    own, tag = bands[collectives.rank], Tag(request, 0, "input")
    if collectives.rank == 0:
        assert pixels_BCYX is not None, "rank 0 is the terminal and has the image"
        for peer in collectives.peers:
            if bands[peer]:
                band_BCYX = pixels_BCYX[:, :, bands[peer].start : bands[peer].stop]
                collectives.transport.send(peer, tag, encode_band(band_BCYX, encoding))
        return pixels_BCYX[:, :, own.start : own.stop]
    if not own:
        return np.empty((0, _CHANNELS, 0, image_size), np.uint8)
    payload = collectives.transport.receive(0, tag, collectives.timeout_s)
    return decode_band(payload, encoding, num_rows=len(own), image_size=image_size)


def plan(bands: Sequence[range], image_size: int, encoding: Encoding) -> list[PlannedMessage] | None:
    """Return what one image of batch 1 sends, or None for PNG, whose size only the picture knows. Pure."""
    if encoding == "png":
        return None
    return [
        PlannedMessage(0, rank, _CHANNELS * len(rows) * image_size) for rank, rows in enumerate(bands) if rank and rows
    ]


def encode_band(band_BCYX: Pixels, encoding: Encoding) -> bytes:
    """Turn rows into bytes: as they lie, or as one RGB picture with the batch stacked from top to bottom. Pure."""
    if encoding == "raw":
        return np.ascontiguousarray(band_BCYX).tobytes()
    batch, channels, num_rows, width = band_BCYX.shape
    stacked_YXC = band_BCYX.transpose(0, 2, 3, 1).reshape(batch * num_rows, width, channels)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stacked_YXC)).save(buffer, format="PNG")
    return buffer.getvalue()


def decode_band(payload: bytes | memoryview, encoding: Encoding, *, num_rows: int, image_size: int) -> Pixels:
    """Undo `encode_band` for a band of `num_rows` rows. Pure.

    Raises:
        WireError: The bytes are not a whole number of such bands.
    """
    flat = _png_pixels(payload, image_size) if encoding == "png" else np.frombuffer(payload, np.uint8)
    band_values = _CHANNELS * num_rows * image_size
    if flat.size == 0 or flat.size % band_values:
        raise WireError(
            f"placement: {encoding} band must hold a multiple of {band_values} values ({num_rows} rows of {image_size} "
            f"pixels), got {flat.size}; the ranks disagree about the partition"
        )
    if encoding == "raw":
        return flat.reshape(-1, _CHANNELS, num_rows, image_size)
    return flat.reshape(-1, num_rows, image_size, _CHANNELS).transpose(0, 3, 1, 2)


def _png_pixels(payload: bytes | memoryview, image_size: int) -> Pixels:
    """Return the picture's values, flat, row by row with the colours innermost."""
    try:
        with Image.open(io.BytesIO(payload), formats=["PNG"]) as picture:
            pixels_YXC = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise WireError(f"placement: band must be a PNG, got {error}; the message is damaged") from error
    if pixels_YXC.shape[1] != image_size:
        raise WireError(
            f"placement: PNG band must be {image_size} pixels wide, got {pixels_YXC.shape[1]}; "
            "the ranks disagree about the image size"
        )
    return pixels_YXC.reshape(-1)
