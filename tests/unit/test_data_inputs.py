"""Images: calibration and requests never share a pixel, crops repeat, unreadable files are named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from astra.config import InputConfig, ModelConfig
from astra.data import Purpose, inputs, load_images, to_input
from astra.errors import ConfigError

MODEL = ModelConfig(size="tiny", image_size=32)
SAMPLE = InputConfig()
SPLITS: tuple[Purpose, Purpose] = ("calibrate", "request")


def write_flat_images(folder: Path, count: int) -> InputConfig:
    """Image i has the value 10·i everywhere, so that a crop tells which file it is from."""
    for index in range(count):
        Image.new("RGB", (40 + index, 30), (10 * index,) * 3).save(folder / f"{index:02}.png")
    return InputConfig(images=str(folder))


def test_images_have_the_asked_shape():
    crops = load_images(SAMPLE, MODEL, 5, "request")
    assert (crops.shape, crops.dtype) == ((5, 3, 32, 32), np.uint8)
    assert crops.std() > 10, "photographs, not flat colour"


def test_images_repeat_and_do_not_depend_on_the_count():
    many = load_images(SAMPLE, MODEL, 9, "calibrate")
    np.testing.assert_array_equal(many, load_images(SAMPLE, MODEL, 9, "calibrate"))
    np.testing.assert_array_equal(many[:4], load_images(SAMPLE, MODEL, 4, "calibrate"))


def test_images_differ_from_one_another_and_with_the_seed():
    crops = load_images(SAMPLE, MODEL, 9, "calibrate")
    assert len({crop.tobytes() for crop in crops}) == 9
    reseeded = load_images(SAMPLE, MODEL.model_copy(update={"seed": 1}), 9, "calibrate")
    assert not np.array_equal(crops[2:], reseeded[2:])


def test_sample_splits_share_no_pixel(monkeypatch: pytest.MonkeyPatch):
    """Give every pixel of the two photographs its own colour and compare the colours that crops are cut from."""
    rows, columns = np.mgrid[0:427, 0:640]
    photographs = []
    for number in range(2):
        identity = (number * 427 + rows) * 640 + columns
        photographs.append(np.stack([identity >> shift & 255 for shift in (16, 8, 0)], axis=-1).astype(np.uint8))
    monkeypatch.setattr("sklearn.datasets.load_sample_images", lambda: type("Bunch", (), {"images": photographs}))
    read: dict[Purpose, set[int]] = {split: set() for split in SPLITS}
    crop = Image.Image.crop
    for split in SPLITS:

        def record(picture: Image.Image, box: tuple[int, int, int, int], seen: set[int] = read[split]) -> Image.Image:
            cut = crop(picture, box)
            colours = np.asarray(cut).astype(np.int64)
            seen.update((colours[..., 0] << 16 | colours[..., 1] << 8 | colours[..., 2]).ravel().tolist())
            return cut

        monkeypatch.setattr(Image.Image, "crop", record)
        inputs.load_images(SAMPLE, MODEL, 40, split)
    assert all(len(seen) > 0.4 * 427 * 640 for seen in read.values()), "both splits see much of the photographs"
    assert not read["calibrate"] & read["request"]


def test_folder_splits_share_no_file(tmp_path: Path):
    images = write_flat_images(tmp_path, 5)
    values = {split: set(load_images(images, MODEL, 8, split).ravel().tolist()) for split in SPLITS}
    assert values == {"calibrate": {0, 10}, "request": {20, 30, 40}}


def test_folder_ignores_what_is_no_image(tmp_path: Path):
    images = write_flat_images(tmp_path, 2)
    (tmp_path / "00-notes.txt").write_text("no image")
    assert set(load_images(images, MODEL, 1, "calibrate").ravel().tolist()) == {0}


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "webp", "bmp"])
def test_folder_reads_every_documented_format(tmp_path: Path, suffix: str):
    for name in ("a", "b"):
        Image.new("L", (20, 20), 128).save(tmp_path / f"{name}.{suffix}")
    crops = load_images(InputConfig(images=str(tmp_path)), MODEL, 2, "request")
    assert np.abs(crops.astype(int) - 128).max() <= 2, "a lossy format may move grey by a step or two"


def test_folder_names_every_unreadable_image(tmp_path: Path):
    images = write_flat_images(tmp_path, 6)
    (tmp_path / "03.png").write_bytes(b"not a picture")
    (tmp_path / "05.png").write_bytes((tmp_path / "05.png").read_bytes()[:60])
    with pytest.raises(ConfigError) as caught:
        load_images(images, MODEL, 3, "request")
    assert [Path(fault.split(":")[0]).name for fault in caught.value.faults] == ["03.png", "05.png"]
    assert all("image must be readable, got" in fault for fault in caught.value.faults)


@pytest.mark.parametrize("count", [0, 1])
def test_folder_with_too_few_images_is_refused(tmp_path: Path, count: int):
    images = write_flat_images(tmp_path, count)
    with pytest.raises(ConfigError, match=rf"at least 2 images.*{tmp_path} has {count};"):
        load_images(images, MODEL, 1, "request")


def test_folder_that_is_missing_is_refused(tmp_path: Path):
    images = InputConfig(images=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"input\.images must be 'sample' or a folder that exists"):
        load_images(images, MODEL, 1, "request")


def test_input_is_normalised_to_plus_minus_one():
    pixels = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    inputs = to_input(pixels)
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs, torch.tensor([-1.0, -0.6, 1.0]).reshape(1, 1, 1, 3))
