"""Every strategy reports what came of each content token exactly once, and of exact ones that equals `single`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from strategy_worlds import EXACT, FAMILIES, inputs_for, lively, relative_error, serve

from astra.clustering import fit_codebooks
from astra.codebook import save_codebooks
from astra.dealing import split_tokens
from astra.models import ModelAdapter
from astra.models.block import run_blocks
from astra.strategy_config import (
    AstraConfig,
    BlockConfig,
    GalaxyConfig,
    PipelineConfig,
    PrismConfig,
    SequenceConfig,
    SingleConfig,
    TensorConfig,
)
from astra.training.emulation import emulate_astra, emulate_prism, owners_of

EXACT_CONFIGS = [SingleConfig(), TensorConfig(), SequenceConfig(), GalaxyConfig(), PipelineConfig()]
WEIGHTS = [1.0, 2.0, 1.5, 3.0]
BATCH = 3
EMULATED = 1e-5  # relative: the same operations in another order
ASTRA = AstraConfig(num_groups=2, num_codewords=16, tables="fp32")
PRISM = PrismConfig(num_segments=2)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> ModelAdapter:
    return lively(request.param)


def output_of(
    model: ModelAdapter, config: Any, weights: list[float] = WEIGHTS, codebooks: Path | None = None
) -> torch.Tensor:
    """Return the reported rows of all content tokens, [B, T, D], in order."""
    world = serve(model, config, weights, inputs_for(model, BATCH), codebooks, outputs=True)
    reported = sorted(((tokens, x_BTD) for tokens, x_BTD in world.outputs), key=lambda pair: pair[0].start)
    assert [token for tokens, _ in reported for token in tokens] == list(range(model.shape.num_content_tokens))
    for tokens, x_BTD in reported:
        assert x_BTD.shape == (BATCH, len(tokens), model.shape.width)
    return torch.cat([x_BTD for _, x_BTD in reported], dim=1)


@pytest.mark.parametrize("config", EXACT_CONFIGS, ids=lambda config: config.name)
def test_exact_strategies_report_the_rows_of_single(model: ModelAdapter, config: Any) -> None:
    with torch.inference_mode():
        x_BTD = run_blocks(model.blocks, model.embed(inputs_for(model, BATCH)), causal=model.shape.causal)
    assert relative_error(output_of(model, config), x_BTD[:, model.shape.num_class_tokens :]) < EXACT


@pytest.mark.parametrize("exchange", ["all_gather", "sequence"])
def test_block_reports_the_rows_that_it_computes_on_one_rank(model: ModelAdapter, exchange: Any) -> None:
    config = BlockConfig(num_blocks=2, exchange=exchange)
    alone = output_of(model, config, [1.0])
    assert relative_error(output_of(model, config, [1.0, 1.0]), alone) < EXACT


def test_astra_reports_the_rows_of_its_emulation(model: ModelAdapter, tmp_path: Path) -> None:
    inputs = inputs_for(model, BATCH)
    codebooks = fit_codebooks(model, inputs, ASTRA.num_groups, ASTRA.num_codewords, seed=0)
    save_codebooks(tmp_path, codebooks)
    weights = [2.0, 1.0, 1.0]
    owners_T = owners_of(split_tokens(model.shape, weights, ASTRA))

    def quantise(layer: int, u: torch.Tensor) -> torch.Tensor:
        rows = u.flatten(0, -2)
        return codebooks[layer].decode(codebooks[layer].encode(rows)).view(u.shape)

    with torch.inference_mode():
        emulated = emulate_astra(model, inputs, owners_T, 3, quantise=quantise)
    assert relative_error(output_of(model, ASTRA, weights, tmp_path), emulated.content_BTD) < EMULATED


def test_prism_reports_the_rows_of_its_emulation(model: ModelAdapter) -> None:
    ranges = [range(13), range(13, 19), range(19, 25)]
    with torch.inference_mode():
        emulated = emulate_prism(model, inputs_for(model, BATCH), ranges, PRISM)
    assert relative_error(output_of(model, PRISM, [2.0, 1.0, 1.0]), emulated.content_BTD) < EMULATED
