"""Codebooks repeat, are exact when they can be, and the cache holds only what belongs to its key."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from astra.calibration import num_calibration_inputs
from astra.clustering import fit_codebooks
from astra.codebook import CodebookSpec, load_codebooks
from astra.config import AstraConfig, BenchConfig, InputConfig, ModelConfig, SingleConfig
from astra.data import load_images, to_input
from astra.errors import ConfigError
from astra.fit import cache_folder, ensure_fitted
from astra.models import ModelAdapter, load_model

MODEL = ModelConfig(size="tiny", image_size=64, num_labels=10)
ASTRA = AstraConfig(num_groups=2, num_codewords=16)
IMAGES = InputConfig()
CONFIG = BenchConfig(model=MODEL, input=IMAGES, strategies=(SingleConfig(), ASTRA))
SPEC = CodebookSpec(num_layers=4, width=64, num_groups=2, num_codewords=16)


@pytest.fixture(scope="module")
def model() -> ModelAdapter:
    return load_model(MODEL)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASTRA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def nothing(label: str, done: int, total: int) -> None:
    """Show no progress."""


def calibration(count: int) -> torch.Tensor:
    return to_input(load_images(IMAGES, MODEL, count, "calibrate"))


def test_fit_repeats_for_a_seed(model: ModelAdapter) -> None:
    first, again = (fit_codebooks(model, calibration(8), 1, 16, seed=3) for _ in range(2))
    assert len(first) == model.shape.num_layers
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.codewords_GKd, other.codewords_GKd)


@pytest.mark.parametrize("num_groups", [1, 4])
def test_fit_leaves_less_error_than_the_mean_and_falls_with_codewords(model: ModelAdapter, num_groups: int) -> None:
    inputs = calibration(8)
    content_BTD = model.embed_content(inputs, range(model.shape.num_content_tokens))
    u_RD = model.blocks[0].attention_input(content_BTD).flatten(0, 1)
    errors = [float((u_RD - u_RD.mean(dim=0)).square().mean())]
    for num_codewords in (4, 16, 64):
        codebook = fit_codebooks(model, inputs, num_groups, num_codewords, seed=0)[0]
        errors.append(float((u_RD - codebook.decode(codebook.encode(u_RD))).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_fit_with_more_codewords_than_vectors_is_exact_and_repeats_them(model: ModelAdapter) -> None:
    inputs = calibration(1)
    codebook = fit_codebooks(model, inputs, 1, 64, seed=0)[0]
    assert len(np.unique(codebook.codewords_GKd[0].numpy(), axis=0)) == 16
    u_RD = model.blocks[0].attention_input(model.embed_content(inputs, range(16)))[0]
    torch.testing.assert_close(codebook.decode(codebook.encode(u_RD)), u_RD)
    assert int(codebook.encode(u_RD).max()) < 16


def test_fit_of_a_flat_image_does_not_fail(model: ModelAdapter) -> None:
    codebooks = fit_codebooks(model, torch.zeros(2, 3, 64, 64), 4, 64, seed=0)
    assert all(bool(torch.isfinite(codebook.codewords_GKd).all()) for codebook in codebooks)


def test_fit_of_images_equal_but_for_rounding_does_not_warn(model: ModelAdapter) -> None:
    noise = 1e-6 * torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    codebook = fit_codebooks(model, calibration(1) + noise, 1, 32, seed=0)[0]
    assert codebook.codewords_GKd.shape == (1, 32, 64)


def test_num_calibration_inputs_gives_ten_tokens_a_codeword_within_a_limit() -> None:
    assert num_calibration_inputs(ModelConfig(size="base", image_size=512), AstraConfig()) == 10
    assert num_calibration_inputs(ModelConfig(size="base", image_size=224), AstraConfig()) == 53
    assert num_calibration_inputs(MODEL, AstraConfig()) == 64


def test_ensure_fitted_fills_the_cache_once(cache: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    ensure_fitted(CONFIG, lambda *step: steps.append(step))
    assert steps == [("fit astra G=2 K=16", done, 4) for done in (1, 2, 3, 4)]
    assert len(load_codebooks(cache_folder(MODEL, ASTRA, IMAGES), SPEC)) == 4
    ensure_fitted(CONFIG, lambda *step: steps.append(step))
    assert len(steps) == 4
    assert [path.name for path in (cache / "codebooks").iterdir()] == [cache_folder(MODEL, ASTRA, IMAGES).name]


def test_ensure_fitted_makes_damaged_codebooks_again() -> None:
    ensure_fitted(CONFIG, nothing)
    damaged = cache_folder(MODEL, ASTRA, IMAGES) / "codebooks.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    ensure_fitted(CONFIG, nothing)
    assert len(load_codebooks(damaged.parent, SPEC)) == 4


def test_ensure_fitted_may_run_twice_at_once(cache: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: ensure_fitted(CONFIG, nothing), range(2)))
    assert len(load_codebooks(cache_folder(MODEL, ASTRA, IMAGES), SPEC)) == 4
    assert len(list((cache / "codebooks").iterdir())) == 1


def changed() -> Iterator[tuple[ModelConfig, AstraConfig]]:
    for update in ({"seed": 1}, {"size": "small"}, {"image_size": 80}, {"num_labels": 11}):
        yield MODEL.model_copy(update=update), ASTRA
    for update in ({"num_groups": 4}, {"num_codewords": 32}):
        yield MODEL, ASTRA.model_copy(update=update)


def test_cache_folder_follows_everything_that_the_codewords_depend_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders = {cache_folder(MODEL, ASTRA, IMAGES), *(cache_folder(*configs, IMAGES) for configs in changed())}
    monkeypatch.setattr(torch, "__version__", "0.0")
    folders.add(cache_folder(MODEL, ASTRA, IMAGES))
    assert len(folders) == 8


def test_cache_folder_follows_a_checkpoints_content_and_not_its_place(tmp_path: Path) -> None:
    folders = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes(b"{}")
        (tmp_path / name / "model.safetensors").write_bytes(content)
        folders.append(cache_folder(MODEL.model_copy(update={"checkpoint": str(tmp_path / name)}), ASTRA, IMAGES))
    assert folders[0] == folders[1] != folders[2]


def test_cache_folder_names_a_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.json: file must be readable"):
        cache_folder(MODEL.model_copy(update={"checkpoint": str(tmp_path)}), ASTRA, IMAGES)


def test_cache_root_is_the_users_cache_folder_unless_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ASTRA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(MODEL, ASTRA, IMAGES).parent == tmp_path / "astra-testbed" / "codebooks"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder(MODEL, ASTRA, IMAGES).parent == tmp_path / ".cache" / "astra-testbed" / "codebooks"


def test_ensure_fitted_says_before_the_work_that_the_cache_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ASTRA_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("astra.fit.load_model", lambda config: pytest.fail("the work has begun"))
    with pytest.raises(ConfigError, match="cache: folder must be writable, got"):
        ensure_fitted(CONFIG, lambda label, done, total: None)
