"""Coarser codebooks inside a codebook: prefixes of codes are codes, and cost what they say."""

from pathlib import Path

import pytest
import torch
from strategy_worlds import inputs_for, lively, serve

from astra.clustering import fit_codebooks
from astra.codebook import CodebookSpec, GroupedCodebook, load_codebooks, save_codebooks
from astra.config import AstraConfig, BenchConfig, ModelConfig, SingleConfig
from astra.evaluation.cost import bits_per_token
from astra.fit import bench_needs, ensure_fitted
from astra.nesting import coarsened, nested
from astra.strategies import predict_messages
from astra.traffic import bytes_of

MODEL = ModelConfig(size="tiny", image_size=64, num_labels=10)
SAME = 1e-5
"""Means of the same numbers in another order."""


@pytest.fixture
def codebook() -> GroupedCodebook:
    return GroupedCodebook(torch.randn(2, 64, 4, generator=torch.Generator().manual_seed(0)))


def error(u_RD: torch.Tensor, codebook: GroupedCodebook, codes_RG: torch.Tensor) -> float:
    return float((u_RD - codebook.decode(codes_RG)).square().mean())


def test_nested_order_keeps_all_codewords(codebook: GroupedCodebook) -> None:
    for before, after in zip(codebook.codewords_GKd, nested(codebook).codewords_GKd, strict=True):
        assert sorted(map(tuple, before.tolist())) == sorted(map(tuple, after.tolist()))
    assert torch.equal(nested(codebook).codewords_GKd, nested(codebook).codewords_GKd), "every rank has the same"


def test_first_bits_of_a_code_are_a_coarser_code(codebook: GroupedCodebook) -> None:
    whole = nested(codebook)
    u_RD = torch.randn(500, 8, generator=torch.Generator().manual_seed(1))
    codes_RG = whole.encode(u_RD)
    errors = [
        error(u_RD, coarsened(nested(codebook).codewords_GKd, bits), codes_RG >> (6 - bits)) for bits in range(1, 7)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < float(u_RD.square().mean())
    assert errors[-1] == pytest.approx(error(u_RD, codebook, codebook.encode(u_RD)), rel=SAME)
    for bits in range(1, 7):
        coarse = coarsened(nested(codebook).codewords_GKd, bits)
        assert error(u_RD, coarse, coarse.encode(u_RD)) <= error(u_RD, coarse, codes_RG >> (6 - bits))


def test_a_subtrees_codeword_is_its_mean(codebook: GroupedCodebook) -> None:
    halves_G2d = coarsened(nested(codebook).codewords_GKd, 1).codewords_GKd
    torch.testing.assert_close(halves_G2d.mean(dim=1), codebook.codewords_GKd.mean(dim=1), rtol=SAME, atol=SAME)


def test_fewer_bits_are_what_is_sent(tmp_path: Path) -> None:
    model = lively("vit")
    inputs = inputs_for(model)
    codebooks = [nested(each) for each in fit_codebooks(model, inputs, 4, 16, seed=0)]
    save_codebooks(tmp_path, codebooks)
    config = AstraConfig(num_groups=4, num_codewords=16, code_bits=2)
    world = serve(model, config, [1.0, 1.0], inputs, tmp_path)
    plan = predict_messages(model.shape, config, 2)
    assert sum(each.payload_bytes_sent for each in world.traffic) == bytes_of(plan)
    assert bits_per_token(config, model.shape, [range(12), range(12, 25)]) == model.shape.num_layers * 4 * 2


def test_fit_derives_nested_codebooks_from_those_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASTRA_CACHE", str(tmp_path))
    sizes = {"num_groups": 2, "num_codewords": 16}
    bits = (None, 3, (4, 3, 2, 1), "auto")
    strategies = (SingleConfig(), *(AstraConfig(**sizes, code_bits=each) for each in bits))
    config = BenchConfig(model=MODEL, strategies=strategies)
    ensure_fitted(config, lambda label, done, total: None)
    whole, coarse, layered, open_ = bench_needs(config)
    assert coarse.faults() == []
    assert whole.folder != coarse.folder == layered.folder == open_.folder, "one folder serves any number of bits"
    loaded = load_codebooks(coarse.folder, CodebookSpec(4, MODEL.preset.width, 2, 16))
    originals = load_codebooks(whole.folder, CodebookSpec(4, MODEL.preset.width, 2, 16))
    for one, other in zip(loaded, originals, strict=True):
        assert torch.equal(one.codewords_GKd, nested(other).codewords_GKd)


def test_config_refuses_more_bits_than_there_are() -> None:
    with pytest.raises(ValueError, match="code_bits are at most 10"):
        AstraConfig(code_bits=11)
    assert AstraConfig(code_bits=6).settings == "G=1 bits=6"
