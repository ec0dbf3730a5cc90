"""Labelled images: every published format gives its pixels and classes, and every fault names file and row."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from astra.config import ModelConfig
from astra.data import DataConfig, Examples, Split, load_examples
from astra.data import webp_images as webp
from astra.errors import ConfigError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
LOSSY_STEPS = 3
"""Greys that JPEG may move a flat colour by."""


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("ASTRA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def model(num_labels: int, side: int = 32) -> ModelConfig:
    return ModelConfig(size="tiny", image_size=side, num_labels=num_labels)


def load(
    name: str, folder: Path | None, split: Split = "train", limit: int | None = None, labels: int = 10
) -> Examples:
    config = DataConfig(name=name, folder=None if folder is None else str(folder))  # type: ignore[arg-type]
    return load_examples(config, model(labels), split, limit=limit)


def faults(name: str, folder: Path, split: Split = "train", labels: int = 10) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(name, folder, split, labels=labels)
    return caught.value.faults


# Digits


def test_digits_are_the_scans_on_three_channels():
    examples = load_examples(DataConfig(name="digits"), model(10, side=8).model_copy(update={"image_size": 8}), "train")
    assert (examples.inputs.shape[1:], examples.inputs.dtype) == ((3, 8, 8), np.uint8)
    assert (examples.inputs.min(), examples.inputs.max()) == (0, 255)
    assert (examples.inputs[:, 0] == examples.inputs[:, 2]).all()
    assert (examples.task, examples.num_labels, examples.metrics) == ("classification", 10, ("accuracy",))


def test_digits_splits_are_stratified_fixed_and_share_nothing():
    from sklearn.datasets import load_digits

    parts = {split: load("digits", None, split) for split in SPLITS}
    assert [len(part.inputs) for part in parts.values()] == [1259, 179, 359]
    counts = np.array([np.bincount(part.labels, minlength=10) for part in parts.values()])
    assert (counts.sum(0) == np.bincount(load_digits().target)).all()
    assert (abs(counts - counts.sum(0) * [[0.7], [0.1], [0.2]]) <= 1).all()
    assert parts["test"].labels[:10].tolist() == [4, 5, 6, 9, 4, 7, 8, 9, 9, 6], "the split may never change"


def test_limit_takes_the_first_and_size_follows_the_model():
    whole, some = load("digits", None, "test"), load("digits", None, "test", limit=7)
    assert np.array_equal(some.inputs, whole.inputs[:7])
    assert some.inputs.shape == (7, 3, 32, 32)


# CIFAR as WebP files in one .npz


def pictures(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def write_npz(path: Path, pixels_NHWC: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    encoded = []
    for pixels in pixels_NHWC:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "WEBP", lossless=True)
        encoded.append(stream.getvalue())
    offsets = np.cumsum([0, *map(len, encoded)])
    np.savez(path, data=np.frombuffer(b"".join(encoded), np.uint8), offsets=offsets, labels=labels)


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for name, count in (("train", 40), ("test", 20)):
        write_npz(folder / f"{name}.npz", pictures(count), (np.arange(count) % 10).astype(np.uint8))
    return folder


def test_cifar_npz_gives_pixels_and_keeps_the_last_tenth_for_validation(cifar: Path):
    parts = [load("cifar10", cifar, split) for split in SPLITS]
    assert [len(part.inputs) for part in parts] == [36, 4, 20]
    assert np.array_equal(np.concatenate([part.inputs for part in parts[:2]]), pictures(40).transpose(0, 3, 1, 2))
    assert parts[1].labels.tolist() == [6, 7, 8, 9]
    assert np.array_equal(load("cifar10", cifar.parent, "test", limit=3).inputs, parts[2].inputs[:3])


def test_cifar_npz_is_decoded_once_and_again_if_it_changes(
    cifar: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(webp, "_WORTH_KEEPING", 10)
    first = load("cifar10", cifar)
    kept = list((own_cache / "images").iterdir())
    assert [path.name[:6] for path in kept] == ["train-"]
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("decoded twice"))
    assert np.array_equal(load("cifar10", cifar).inputs, first.inputs)
    monkeypatch.undo()
    monkeypatch.setenv("ASTRA_CACHE", str(own_cache))
    monkeypatch.setattr(webp, "_WORTH_KEEPING", 10)
    kept[0].write_bytes(kept[0].read_bytes()[:1000])
    assert np.array_equal(load("cifar10", cifar).inputs, first.inputs), "a damaged copy is made again"
    write_npz(cifar / "train.npz", pictures(40)[::-1], np.zeros(40, np.uint8))
    assert not np.array_equal(load("cifar10", cifar).inputs, first.inputs)


def test_cifar_npz_faults_name_file_and_row(cifar: Path):
    path = cifar / "train.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "train.npz: file must be an .npz with the arrays data, offsets, labels, got" in faults("cifar10", cifar)[0]
    path.write_bytes(whole)
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "labels": np.where(np.arange(40) == 7, 10, 3)})
    assert faults("cifar10", cifar)[0].startswith(f"{path}: label of row 7 must be from 0 to 9, got 10;")
    np.savez(path, **{**arrays, "offsets": arrays["offsets"][:-1]})
    assert "offsets must be 41 rising numbers from 0 to" in faults("cifar10", cifar)[0]
    data = arrays["data"].copy()
    data[arrays["offsets"][2] : arrays["offsets"][3]] = 0
    np.savez(path, **{**arrays, "data": data})
    assert [fault.split(",")[0] for fault in faults("cifar10", cifar)] == [f"{path}: image of row 2 must be readable"]
    np.savez(path, **{**arrays, "data": np.zeros((2, 2), np.uint8)})
    assert "data must be a row of uint8, got uint8 of shape (2, 2)" in faults("cifar10", cifar)[0]
    np.savez(path, labels=arrays["labels"])
    assert "data is not a file in the archive" in faults("cifar10", cifar)[0]


# CIFAR's binary version


def write_binary(path: Path, count: int, *, fine: bool = False) -> NDArray[np.uint8]:
    planes = pictures(count).transpose(0, 3, 1, 2)
    labels = (np.arange(count) % 10).astype(np.uint8)[:, None]
    coarse = [np.full((count, 1), 255, np.uint8)] if fine else []
    np.concatenate([*coarse, labels, planes.reshape(count, -1)], axis=1).tofile(path)
    return planes


def test_cifar10_binary_joins_its_batches(tmp_path: Path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    batches = [write_binary(folder / f"data_batch_{number}.bin", 2 * number) for number in range(1, 6)]
    write_binary(folder / "test_batch.bin", 5)
    train, validation, test = (load("cifar10", tmp_path, split) for split in SPLITS)
    assert np.array_equal(np.concatenate([train.inputs, validation.inputs]), np.concatenate(batches))
    assert [len(part.inputs) for part in (train, validation, test)] == [27, 3, 5]
    assert test.labels.tolist() == [0, 1, 2, 3, 4]


def test_cifar100_binary_has_its_fine_labels(tmp_path: Path):
    planes = write_binary(tmp_path / "test.bin", 12, fine=True)
    examples = load("cifar100", tmp_path, "test", labels=100)
    assert np.array_equal(examples.inputs, planes)
    assert examples.labels.tolist() == [*range(10), 0, 1]
    assert examples.num_labels == 100


def test_cifar_binary_faults_name_file_and_row(tmp_path: Path):
    for number in range(1, 6):
        write_binary(tmp_path / f"data_batch_{number}.bin", 2)
    path = tmp_path / "data_batch_2.bin"
    rows = np.fromfile(path, np.uint8).reshape(2, -1)
    rows[1, 0] = 11
    rows.tofile(path)
    (tmp_path / "data_batch_4.bin").write_bytes(b"short")
    assert [fault.split(", got")[0] for fault in faults("cifar10", tmp_path)] == [
        f"{path}: label of row 1 must be from 0 to 9",
        f"{tmp_path / 'data_batch_4.bin'}: file must be rows of 3073 bytes",
    ]
    assert "test_batch.bin: file must exist, got data_batch_1.bin, " in faults("cifar10", tmp_path, "test")[0]


def test_pickled_cifar_is_refused_unread(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a pickle was read",)

    (tmp_path / "train").write_bytes(pickle.dumps(Trap()))
    said = faults("cifar100", tmp_path, labels=100)
    assert said == (
        f"{tmp_path / 'train.bin'}: file must exist, got the pickled version; take the set's binary version instead",
    )


# ImageNet and one's own images


def write_flat(path: Path, grey: int, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey,) * 3).save(path, "JPEG")


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    for number, wnid in enumerate(("n01440764", "n01443537", "n02102040")):
        for image in range(3):
            write_flat(tmp_path / "train" / wnid / f"{wnid}_{image}.JPEG", 80 * number)
    for number in range(1, 5):
        write_flat(tmp_path / "val" / f"ILSVRC2012_val_{number:08}.JPEG", 40 * number)
    return tmp_path


def greys(examples: Examples) -> list[float]:
    return examples.inputs.reshape(len(examples.inputs), -1).mean(1).tolist()


def test_imagenet_train_numbers_wnids_and_takes_turns(imagenet: Path):
    examples = load("imagenet", imagenet, "train", labels=3)
    assert examples.labels.tolist() == [0, 1, 2] * 3
    assert np.allclose(greys(examples), [0, 80, 160] * 3, atol=LOSSY_STEPS)
    assert len(load("imagenet", imagenet, "train", limit=2, labels=3).inputs) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("val.txt", "".join(f"ILSVRC2012_val_{n:08}.JPEG {label}\n" for n, label in enumerate((2, 0, 1, 2), start=1))),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\n"
            "ILSVRC2012_val_00000003,n01443537 85 1 499 272 \nILSVRC2012_val_00000001,n02102040 1 1 2 2\n"
            "ILSVRC2012_val_00000002,n01440764 1 1 2 2\nILSVRC2012_val_00000004,n02102040 1 2 3 4 n02102040 1 2 3 4\n",
        ),
        ("imagenet_2012_validation_synset_labels.txt", "n02102040\nn01440764\nn01443537\nn02102040\n"),
    ],
)
def test_imagenet_val_reads_every_kind_of_labels(imagenet: Path, name: str, text: str):
    (imagenet / name).write_text(text)
    examples = load("imagenet", imagenet, "validation", labels=3)
    assert examples.labels.tolist() == [2, 0, 1, 2]
    assert np.allclose(greys(examples), [40, 80, 120, 160], atol=LOSSY_STEPS)


def test_imagenet_val_in_class_folders_is_numbered_as_train(imagenet: Path, tmp_path: Path):
    for path in (imagenet / "val").iterdir():
        path.unlink()
    write_flat(imagenet / "val" / "n01440764" / "a.JPEG", 10)
    assert (
        "every class must have images, got none of n01443537, n02102040"
        in faults("imagenet", imagenet, "validation", labels=3)[0]
    )
    for wnid in ("n01443537", "n02102040"):
        write_flat(imagenet / "val" / wnid / "a.JPEG", 10)
    assert load("imagenet", imagenet, "validation", labels=3).labels.tolist() == [0, 1, 2]


def test_imagenet_crop_is_the_centre(tmp_path: Path):
    for wnid in ("a", "b"):
        (tmp_path / "train" / wnid).mkdir(parents=True)
        border = Image.new("RGB", (128, 128), (255, 0, 0))
        border.paste((0, 0, 255), (16, 16, 112, 112))
        border.save(tmp_path / "train" / wnid / "x.png")
    blue = load("imagenet", tmp_path, labels=2).inputs[0, 2]
    assert (blue[6:-6, 6:-6] > 250).all(), "7/8 of 128 pixels are 112: of the border, 8 of 112 pixels are left a side"
    assert blue[0].max() < 128


def test_imagenet_faults_say_what_to_do(imagenet: Path):
    assert "val.txt: file must exist, got" in faults("imagenet", imagenet, "validation", labels=3)[0]
    assert "labels, got none; those of imagenet are not published" in faults("imagenet", imagenet, "test", labels=3)[0]
    (imagenet / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 3\nILSVRC2012_val_00000002.JPEG\n")
    assert "row 2 must be a name and a number" in faults("imagenet", imagenet, "validation", labels=3)[0]
    (imagenet / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 3\nILSVRC2012_val_00000009.JPEG 0\n")
    assert "label of row 0 must be from 0 to 2, got 3" in faults("imagenet", imagenet, "validation", labels=3)[0]
    (imagenet / "val.txt").write_text("ILSVRC2012_val_00000009.JPEG 0\n")
    assert "ILSVRC2012_val_00000009.JPEG: image must be readable" in faults("imagenet", imagenet, "validation", 3)[0]


def test_own_images_are_parted_by_name(tmp_path: Path):
    for number, name in enumerate(("cat", "dog")):
        for image in range(10):
            write_flat(tmp_path / name / f"{image}.jpg", 100 * number + 10 * image)
    train, validation, test = (load("images", tmp_path, split, labels=2) for split in SPLITS)
    assert np.allclose(greys(test), [90, 190], atol=LOSSY_STEPS)
    assert np.allclose(greys(validation), [80, 180], atol=LOSSY_STEPS)
    assert (train.labels.tolist(), train.num_labels) == ([0, 1] * 8, 2)


def test_own_images_may_be_parted_by_folders(tmp_path: Path):
    for split, count in (("train", 10), ("test", 2)):
        for name in ("cat", "dog"):
            for image in range(count):
                write_flat(tmp_path / split / name / f"{image}.png", 10 * image)
    sizes = [len(load("images", tmp_path, split, labels=2).inputs) for split in SPLITS]
    assert sizes == [18, 2, 4], "validation is a tenth of train"
    for name in ("cat", "dog"):
        write_flat(tmp_path / "val" / name / "0.png", 0)
    assert [len(load("images", tmp_path, split, labels=2).inputs) for split in SPLITS] == [20, 2, 4]


def test_own_images_faults(tmp_path: Path):
    (tmp_path / "cat").mkdir()
    assert "a folder for each of 2 classes or more, got ['cat']" in faults("images", tmp_path, labels=2)[0]
    (tmp_path / "dog").mkdir()
    write_flat(tmp_path / "dog" / "0.png", 0)
    assert "every class must have images, got none of cat" in faults("images", tmp_path, labels=2)[0]
    assert "folder must exist, got" in faults("images", tmp_path / "none", labels=2)[0]


def test_more_images_than_memory_are_refused():
    from astra.data.image_folders import check_size

    check_size(50_000, 224, "data")
    with pytest.raises(ConfigError, match=r"images must fit in 8 GB, got 1281167; limit them to 53146"):
        check_size(1_281_167, 224, "data")


# The model


def test_set_must_suit_the_model(cifar: Path):
    assert faults("cifar10", cifar, labels=7) == (
        "model: num_labels must be 10 for cifar10, got 7; change it, or choose a checkpoint trained on the set",
    )
    bert = ModelConfig(family="bert", size="tiny", num_tokens=32)
    with pytest.raises(ConfigError, match=r"model: family must be vit for digits, got 'bert'; change it or data.name"):
        load_examples(DataConfig(name="digits"), bert, "train")
