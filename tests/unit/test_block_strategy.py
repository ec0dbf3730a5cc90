"""Block parallelism equals its own decoupled model on one device, and sends what its formula says."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from strategy_worlds import EXACT, FAMILIES, SPLITS, check_predicted, inputs_for, lively, relative_error, serve
from torch import Tensor, nn

from astra.attention import attend
from astra.models import ModelAdapter
from astra.models.block import run_blocks
from astra.strategies import STRATEGIES, predict_bytes
from astra.strategies.block import coupled_layers
from astra.strategy_config import BlockConfig, WireName

SAME = 1e-5  # fp32 sums in another order, one layer
COUPLINGS = [BlockConfig(), BlockConfig(exchange="sequence"), BlockConfig(num_coupled=2, exchange="sequence")]
LOSSY: dict[WireName, float] = {"fp16": 5e-3, "int8": 5e-2, "int4": 0.8}  # one exchange, rounded as in `wire`


@pytest.fixture(scope="module")
def models() -> dict[str, ModelAdapter]:
    return {family: lively(family) for family in FAMILIES}


def decoupled_forward(model: ModelAdapter, inputs: Tensor, config: BlockConfig) -> Tensor:
    """Run the decoupled model on one device."""
    shape, parts = model.shape, config.num_blocks
    x_BTD = model.embed(inputs)
    for layer, block in enumerate(model.blocks):
        if layer in coupled_layers(shape.num_layers, config.num_coupled):
            x_BTD = run_blocks([block], x_BTD, causal=shape.causal)
            continue
        columns = x_BTD.chunk(parts, dim=-1)
        outputs = [run_blocks([block.sub_block(n, parts)], columns[n], causal=shape.causal) for n in range(parts)]
        x_BTD = torch.cat(outputs, dim=-1)
    return model.head(x_BTD[:, shape.answer_token])


@pytest.mark.parametrize("config", COUPLINGS, ids=lambda config: config.settings)
@pytest.mark.parametrize("weights", SPLITS, ids=str)
def test_block_equals_its_decoupled_model_on_one_device(
    models: dict[str, ModelAdapter], config: BlockConfig, weights: list[float]
) -> None:
    model = models["vit"]
    inputs = inputs_for(model)
    world = serve(model, config, weights, inputs)
    assert relative_error(world.logits, decoupled_forward(model, inputs, config)) < EXACT
    assert relative_error(world.logits, model.forward(inputs)) > EXACT
    check_predicted(model, config, weights, world.traffic)


@pytest.mark.parametrize("exchange", ["all_gather", "sequence"])
@pytest.mark.parametrize("family", FAMILIES)
def test_block_runs_every_family(models: dict[str, ModelAdapter], family: str, exchange: str) -> None:
    model, weights = models[family], [1.0, 2.0]
    config = BlockConfig.model_validate({"num_blocks": 2, "exchange": exchange, "num_coupled": 2})
    inputs = inputs_for(model)
    world = serve(model, config, weights, inputs)
    assert relative_error(world.logits, decoupled_forward(model, inputs, config)) < EXACT
    check_predicted(model, config, weights, world.traffic)


def test_block_with_one_sub_block_is_the_model(models: dict[str, ModelAdapter]) -> None:
    for model in models.values():
        inputs = inputs_for(model)
        world = serve(model, BlockConfig(num_blocks=1), [1.0], inputs)
        assert relative_error(world.logits, model.forward(inputs)) < EXACT


def test_sub_block_is_the_layer_with_zeros_off_the_diagonal(models: dict[str, ModelAdapter]) -> None:
    """A ViT layer by hand: matrices masked to their diagonal blocks, norms over each part."""
    model, parts = models["vit"], 2
    layer = model.huggingface.vit.layers[1]  # type: ignore[attr-defined]
    x_BTD = torch.randn(1, 5, model.shape.width, generator=torch.Generator().manual_seed(1))

    def norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
        normed = [F.layer_norm(part, part.shape[-1:], eps=module.eps) for part in x.chunk(parts, dim=-1)]
        return torch.cat(normed, dim=-1) * module.weight + module.bias

    def linear(module: nn.Linear, x: Tensor) -> Tensor:
        rows, columns = module.weight.shape
        mask = torch.kron(torch.eye(parts), torch.ones(rows // parts, columns // parts))
        return F.linear(x, module.weight * mask, module.bias)

    u_BTD, attention = norm(layer.layernorm_before, x_BTD), layer.attention
    heads = (1, 5, model.shape.num_heads, -1)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    context = attend(*(linear(projection, u_BTD).view(heads).transpose(1, 2) for projection in projections))
    a_BTD = x_BTD + linear(attention.o_proj, context)
    h_BTD = F.gelu(linear(layer.mlp.fc1, norm(layer.layernorm_after, a_BTD)))
    expected = a_BTD + linear(layer.mlp.fc2, h_BTD)
    narrow = [
        run_blocks([model.blocks[1].sub_block(part, parts)], x_BTw, causal=False)
        for part, x_BTw in enumerate(x_BTD.chunk(parts, dim=-1))
    ]
    torch.testing.assert_close(torch.cat(narrow, dim=-1), expected, rtol=SAME, atol=SAME)


@pytest.mark.parametrize("wire", list(LOSSY))
def test_block_with_narrow_wires_stays_close(models: dict[str, ModelAdapter], wire: WireName) -> None:
    model, weights = models["vit"], [1.0, 2.0, 1.0]
    inputs, config = inputs_for(model), BlockConfig(exchange="sequence", wire=wire)
    world = serve(model, config, weights, inputs)
    assert EXACT < relative_error(world.logits, decoupled_forward(model, inputs, config)) < LOSSY[wire]
    check_predicted(model, config, weights, world.traffic)


@pytest.mark.parametrize("config", COUPLINGS, ids=lambda config: config.settings)
def test_block_keeps_the_batch_dimension(models: dict[str, ModelAdapter], config: BlockConfig) -> None:
    model = models["vit"]
    both = torch.cat((inputs_for(model), inputs_for(model).flip(3)))
    together = serve(model, config, [1.0, 2.0], both).logits
    apart = [serve(model, config, [1.0, 2.0], one).logits for one in both.split(1)]
    assert relative_error(together, torch.cat(apart)) < EXACT


@pytest.mark.parametrize(
    ("num_layers", "num_coupled", "expected"), [(12, 1, [6]), (12, 2, [3, 9]), (4, 4, [0, 1, 2, 3])]
)
def test_coupled_layers_are_spread_evenly(num_layers: int, num_coupled: int, expected: Sequence[int]) -> None:
    assert coupled_layers(num_layers, num_coupled) == expected


def test_block_refuses_what_cannot_be_dealt(models: dict[str, ModelAdapter]) -> None:
    model, plan = models["vit"], STRATEGIES["block"].plan
    with pytest.raises(ValueError, match=r"num_blocks must divide the model's 4 heads, .* got 3; use 1, 2, 4"):
        plan(model.shape, BlockConfig(num_blocks=3), [], [1.0])
    with pytest.raises(ValueError, match="num_blocks must be at least one per device, got 2 for 3"):
        plan(model.shape, BlockConfig(num_blocks=2), [], [1.0] * 3)
    with pytest.raises(ValueError, match="num_coupled must be at most the model's 4 layers, got 5"):
        predict_bytes(model.shape, BlockConfig(num_coupled=5), 2)
