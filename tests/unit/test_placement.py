"""Bands arrive as they left, raw and PNG, and cost what the plan says."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from astra.collectives import Collectives
from astra.errors import WireError
from astra.placement import Encoding, Pixels, decode_band, distribute, encode_band, plan
from astra.traffic import bytes_of
from astra.transport.inproc import connect

IMAGE_SIZE = 48
BANDS = [range(32), range(16, 48), range(0)]
TIMEOUT_S = 30.0


def random_pixels(batch: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (batch, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)


def distributed(pixels: Pixels, encoding: Encoding) -> tuple[list[Pixels], int, int]:
    """Return every rank's band, and the messages and bytes that rank 0 sent."""
    transports = connect(len(BANDS))

    def one_rank(rank: int) -> Pixels:
        collectives = Collectives(transports[rank], TIMEOUT_S)
        image = pixels if rank == 0 else None
        return distribute(collectives, 5, image, BANDS, image_size=IMAGE_SIZE, encoding=encoding)

    with ThreadPoolExecutor(len(BANDS)) as pool:
        bands = list(pool.map(one_rank, range(len(BANDS))))
    traffic = transports[0].traffic
    for transport in transports:
        transport.close()
    return bands, traffic.messages_sent, traffic.payload_bytes_sent


@pytest.mark.parametrize("encoding", ["raw", "png"])
@pytest.mark.parametrize("batch", [1, 2])
def test_distribute_gives_every_rank_its_rows_and_no_more(encoding: Encoding, batch: int) -> None:
    pixels = random_pixels(batch)
    bands, messages, _ = distributed(pixels, encoding)
    assert messages == 1  # rank 2 has no tokens and gets nothing
    assert np.array_equal(bands[0], pixels[:, :, 0:32])
    assert np.array_equal(bands[1], pixels[:, :, 16:48])
    assert bands[2].size == 0


def test_plan_equals_what_the_transport_counts() -> None:
    _, messages, sent = distributed(random_pixels(1), "raw")
    planned = plan(BANDS, IMAGE_SIZE, "raw")
    assert planned is not None
    assert (len(planned), bytes_of(planned)) == (messages, sent) == (1, 3 * 32 * IMAGE_SIZE)


def test_plan_of_png_is_not_known_beforehand() -> None:
    assert plan(BANDS, IMAGE_SIZE, "png") is None


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_decode_refuses_a_band_of_another_height(encoding: Encoding) -> None:
    payload = encode_band(random_pixels(1), encoding)
    with pytest.raises(WireError, match="band must hold a multiple of 4608 values"):
        decode_band(payload, encoding, num_rows=32, image_size=IMAGE_SIZE)


@pytest.mark.parametrize("payload", [b"", b"not a picture", encode_band(random_pixels(1), "png")[:200]])
def test_decode_refuses_a_damaged_png(payload: bytes) -> None:
    with pytest.raises(WireError, match="band must be a PNG"):
        decode_band(payload, "png", num_rows=IMAGE_SIZE, image_size=IMAGE_SIZE)


def test_decode_refuses_a_png_of_another_width() -> None:
    with pytest.raises(WireError, match="must be 96 pixels wide, got 48"):
        decode_band(encode_band(random_pixels(1), "png"), "png", num_rows=24, image_size=96)
