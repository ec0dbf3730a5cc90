"""Codes are the nearest codewords, and damaged files are refused by name."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from astra.codebook import CodebookSpec, GroupedCodebook, load_codebooks, save_codebooks
from astra.errors import ConfigError

WIDTH, NUM_CODEWORDS = 24, 16
NEAR_TIE = 1e-4  # two distances closer than fp32 can tell apart


def random_codebook(num_groups: int) -> GroupedCodebook:
    return GroupedCodebook(torch.randn(num_groups, NUM_CODEWORDS, WIDTH // num_groups))


@settings(max_examples=25, deadline=None)
@given(num_groups=st.sampled_from([1, 2, 3, 8]), num_rows=st.integers(0, 40), seed=st.integers(0, 10_000))
def test_encode_finds_the_nearest_codeword_of_brute_force(num_groups: int, num_rows: int, seed: int) -> None:
    torch.manual_seed(seed)
    codebook, u_RD = random_codebook(num_groups), torch.randn(num_rows, WIDTH)
    codes_RG = codebook.encode(u_RD)
    assert codes_RG.shape == (num_rows, num_groups)
    assert codes_RG.dtype == torch.int64
    u_RG1d = u_RD.double().view(num_rows, num_groups, 1, WIDTH // num_groups)
    distances_RGK = (u_RG1d - codebook.codewords_GKd.double()).square().sum(dim=-1)
    chosen_RG = distances_RGK.gather(2, codes_RG[:, :, None])[:, :, 0]
    assert (chosen_RG <= distances_RGK.amin(dim=2) + NEAR_TIE).all()


def test_encode_takes_the_lowest_code_among_equal_codewords() -> None:
    codeword = torch.randn(1, 1, WIDTH)
    codebook = GroupedCodebook(codeword.expand(1, NUM_CODEWORDS, WIDTH))
    assert codebook.encode(torch.randn(5, WIDTH)).eq(0).all()


@pytest.mark.parametrize("num_groups", [1, 4])
def test_decode_undoes_encode_of_codewords(num_groups: int) -> None:
    codebook = random_codebook(num_groups)
    codes_RG = torch.randint(0, NUM_CODEWORDS, (30, num_groups))
    assert torch.equal(codebook.encode(codebook.decode(codes_RG)), codes_RG)


SPEC = CodebookSpec(num_layers=2, width=WIDTH, num_groups=2, num_codewords=NUM_CODEWORDS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_codebooks(tmp_path, [random_codebook(2), random_codebook(2)], {"seed": 7})
    return tmp_path


def test_load_gives_back_what_was_saved(tmp_path: Path) -> None:
    codebooks = [random_codebook(2), random_codebook(2)]
    save_codebooks(tmp_path / "new", codebooks)
    for saved, loaded in zip(codebooks, load_codebooks(tmp_path / "new", SPEC), strict=True):
        assert torch.equal(saved.codewords_GKd, loaded.codewords_GKd)


@pytest.mark.parametrize("name", ["astra.json", "codebooks.safetensors"])
def test_load_names_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name}: file must be .*; run `astra fit`"):
        load_codebooks(folder, SPEC)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_load_refuses_truncated_tensors(folder: Path, kept: int) -> None:
    path = folder / "codebooks.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ConfigError, match=r"codebooks.safetensors: file must be whole safetensors"):
        load_codebooks(folder, SPEC)


def test_load_refuses_another_size_and_names_every_field(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_codebooks(folder, CodebookSpec(num_layers=3, width=48, num_groups=2, num_codewords=32))
    assert [fault.split(": ")[1].split(",")[0] for fault in caught.value.faults] == [
        "num_layers must be 3",
        "width must be 48",
        "num_codewords must be 32",
    ]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"format": 2}, "format must be as `astra fit` writes it, got 2"),
        ({"num_groups": "2"}, "num_groups must be as `astra fit` writes it, got '2'"),
        ({"extra": 1}, "extra must be as `astra fit` writes it, got 1"),
    ],
)
def test_load_refuses_metadata_off_the_schema(folder: Path, change: dict[str, object], fault: str) -> None:
    path = folder / "astra.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=fault):
        load_codebooks(folder, SPEC)


def test_load_refuses_metadata_that_is_not_json(folder: Path) -> None:
    (folder / "astra.json").write_text("{")
    with pytest.raises(ConfigError, match=r"astra.json: the file must be as `astra fit` writes it"):
        load_codebooks(folder, SPEC)


def test_load_refuses_tensors_that_metadata_does_not_announce(folder: Path) -> None:
    wrong = GroupedCodebook(torch.full((2, NUM_CODEWORDS, WIDTH // 2), torch.nan))
    metadata = (folder / "astra.json").read_bytes()
    save_codebooks(folder, [wrong, random_codebook(1), random_codebook(2)])
    (folder / "astra.json").write_bytes(metadata)
    with pytest.raises(ConfigError) as caught:
        load_codebooks(folder, SPEC)
    assert [fault.split(": ")[1].split(",")[0] for fault in caught.value.faults] == [
        "tensors must be ['layer.0'",
        "layer.0 must be finite",
        "layer.1 must be float32 (2",
    ]
