"""Bands arrive as they left, as pixels, PNG and ids, and cost what the plan says."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra.collectives import Collectives
from astra.errors import WireError
from astra.placement import Array, Codec, PixelCodec, TokenCodec, distribute, plan
from astra.traffic import bytes_of
from astra.transport.inproc import connect

IMAGE_SIZE = 48
BANDS = [range(32), range(16, 48), range(0)]
TIMEOUT_S = 30.0
RAW, PNG = PixelCodec(IMAGE_SIZE), PixelCodec(IMAGE_SIZE, "png")


def random_pixels(batch: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, (batch, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)


def random_ids(vocabulary: int, count: int = IMAGE_SIZE) -> Array:
    return np.random.default_rng(1).integers(0, vocabulary, (1, count))


def distributed(whole: Array, codec: Codec, bands: Sequence[range] = BANDS) -> tuple[list[Array], int, int]:
    """Return every rank's band, and the messages and bytes that rank 0 sent."""
    transports = connect(len(bands))

    def one_rank(rank: int) -> Array:
        return distribute(Collectives(transports[rank], TIMEOUT_S), 5, whole if rank == 0 else None, bands, codec)

    with ThreadPoolExecutor(len(bands)) as pool:
        received = list(pool.map(one_rank, range(len(bands))))
    traffic = transports[0].traffic
    for transport in transports:
        transport.close()
    return received, traffic.messages_sent, traffic.payload_bytes_sent


@pytest.mark.parametrize("codec", [RAW, PNG], ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_distribute_gives_every_rank_its_rows_and_no_more(codec: PixelCodec, batch: int) -> None:
    pixels = random_pixels(batch)
    bands, messages, _ = distributed(pixels, codec)
    assert messages == 1  # rank 2 has no tokens and gets nothing
    assert np.array_equal(bands[0], pixels[:, :, 0:32])
    assert np.array_equal(bands[1], pixels[:, :, 16:48])
    assert bands[2].size == 0


@pytest.mark.parametrize("vocabulary", [2, 512, 50257, 65536, 65537, 128256])
def test_distribute_gives_every_rank_its_ids(vocabulary: int) -> None:
    ids = random_ids(vocabulary)
    bands, messages, _ = distributed(ids, TokenCodec(vocabulary))
    assert messages == 1
    assert np.array_equal(bands[0], ids[:, 0:32])
    assert np.array_equal(bands[1], ids[:, 16:48])
    assert bands[1].dtype == np.int64
    assert bands[2].shape == (1, 0)


@pytest.mark.parametrize(
    ("codec", "size"), [(RAW, 3 * 32 * IMAGE_SIZE), (TokenCodec(50257), 64), (TokenCodec(128256), 68)]
)
def test_plan_equals_what_the_transport_counts(codec: Codec, size: int) -> None:
    """32 rows of pixels; 32 ids of 16 bits; 32 ids of 17 bits."""
    whole = random_pixels(1) if isinstance(codec, PixelCodec) else random_ids(codec.vocabulary)  # type: ignore[attr-defined]
    _, messages, sent = distributed(whole, codec)
    planned = plan(BANDS, codec, whole)
    assert (len(planned), bytes_of(planned)) == (messages, sent) == (1, size)


def test_plan_of_png_encodes_the_picture() -> None:
    assert PNG.size(32) is None
    _, messages, sent = distributed(random_pixels(1), PNG)
    planned = plan(BANDS, PNG, random_pixels(1))
    assert (len(planned), bytes_of(planned)) == (messages, sent)


@given(vocabulary=st.integers(1, 2**20), count=st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_ids_survive_the_way_at_the_size_that_is_planned(vocabulary: int, count: int) -> None:
    codec, ids = TokenCodec(vocabulary), random_ids(vocabulary, count)
    packed = codec.encode(ids)
    assert len(packed) == codec.size(count)
    assert np.array_equal(codec.decode(packed, count), ids)


@pytest.mark.parametrize("vocabulary", [512, 128256])
def test_decode_refuses_another_number_of_ids(vocabulary: int) -> None:
    codec = TokenCodec(vocabulary)
    packed = codec.encode(random_ids(vocabulary))
    for wrong in (IMAGE_SIZE - 16, IMAGE_SIZE + 16):
        with pytest.raises(WireError):
            codec.decode(packed, wrong)


@pytest.mark.parametrize("codec", [RAW, PNG], ids=str)
def test_decode_refuses_a_band_of_another_height(codec: PixelCodec) -> None:
    with pytest.raises(WireError, match="band must hold a multiple of 4608 values"):
        codec.decode(codec.encode(random_pixels(1)), num_rows=32)


@pytest.mark.parametrize("payload", [b"", b"not a picture", PNG.encode(random_pixels(1))[:200]])
def test_decode_refuses_a_damaged_png(payload: bytes) -> None:
    with pytest.raises(WireError, match="band must be a PNG"):
        PNG.decode(payload, num_rows=IMAGE_SIZE)


def test_decode_refuses_a_png_of_another_width() -> None:
    with pytest.raises(WireError, match="must be 96 pixels wide, got 48"):
        PixelCodec(96, "png").decode(PNG.encode(random_pixels(1)), num_rows=24)
