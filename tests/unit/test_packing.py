"""A packed model computes the same, whole and in parts, and is only made where there is memory for it."""

from collections.abc import Callable

import pytest
import torch
from strategy_worlds import FAMILIES, inputs_for, lively
from torch import Tensor, nn
from transformers.activations import ACT2FN

from astra.flops import counted_flops
from astra.models import Block, ModelAdapter, packing
from astra.models.activation import Gelu, activation_of
from astra.models.affine import Affine
from astra.models.packing import pack, packed_linear

ROUNDING = 1e-5  # fp32 sums in another order
ROOM = 1 << 40

needs_packing = pytest.mark.skipif(pack(torch.ones(2, 2)) is None, reason="missing: oneDNN operators in this torch")


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> ModelAdapter:
    return lively(request.param)


@needs_packing
@pytest.mark.parametrize("gelu", [None, Gelu("none"), Gelu("tanh")])
@pytest.mark.parametrize("shape", [(5, 24), (2, 7, 24), (1, 0, 24)])
def test_packed_product_equals_the_plain_one(gelu: Gelu | None, shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(shape), torch.randn(10, 24), torch.randn(10)
    packed = pack(weight)
    assert packed is not None
    y = torch.nn.functional.linear(x, weight, bias)
    expected = y if gelu is None else gelu(y)
    torch.testing.assert_close(packed_linear(x, packed, bias, gelu), expected, rtol=ROUNDING, atol=ROUNDING)


@needs_packing
def test_packed_model_answers_alike(model: ModelAdapter) -> None:
    packed = model.packed_if(ROOM)
    assert packed is not model
    inputs = inputs_for(model, batch=2)
    with torch.inference_mode():
        expected = model.forward(inputs)
        torch.testing.assert_close(
            packed.forward(inputs), expected, rtol=ROUNDING, atol=ROUNDING * float(expected.abs().max())
        )


@needs_packing
@pytest.mark.parametrize(
    "part",
    [
        lambda block: lambda u: block.shard(range(1), range(3)).mlp(u),
        lambda block: lambda u: block.shard(range(1), range(0)).query(u),
        lambda block: lambda u: block.sub_block(1, 2).mlp(u[..., : u.shape[-1] // 2].contiguous()),
    ],
    ids=["hidden units", "heads", "diagonal"],
)
def test_parts_of_a_packed_layer_compute_alike(
    model: ModelAdapter, part: Callable[[Block], Callable[[Tensor], Tensor]]
) -> None:
    u_BTD = torch.randn(1, 5, model.shape.width)
    with torch.inference_mode():
        expected = part(model.blocks[0])(u_BTD)
        got = part(model.packed_if(ROOM).blocks[0])(u_BTD)
    torch.testing.assert_close(got, expected, rtol=ROUNDING, atol=ROUNDING * float(expected.abs().max()))


def test_a_model_is_not_packed_where_memory_is_scarce(model: ModelAdapter) -> None:
    assert model.packed_if(0) is model


@needs_packing
def test_packed_products_count_as_operations(model: ModelAdapter) -> None:
    inputs = inputs_for(model, batch=1)
    with torch.inference_mode():
        with counted_flops() as plain:
            model.forward(inputs)
        with counted_flops() as packed:
            model.packed_if(ROOM).forward(inputs)
    assert packed.total == plain.total > 0


def test_without_the_operators_everything_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_operators", object)
    affine = Affine(torch.randn(3, 4)).packed()
    assert affine.packed_weight is None
    x = torch.randn(2, 4)
    assert torch.equal(affine(x), torch.nn.functional.linear(x, affine.weight))


@pytest.mark.parametrize("weight", [torch.ones(0, 4), torch.ones(3, 4, dtype=torch.float64)])
def test_what_cannot_be_packed_stays_as_it_is(weight: Tensor) -> None:
    assert pack(weight) is None


@pytest.mark.parametrize(
    ("name", "expected"), [("gelu", Gelu("none")), ("gelu_new", Gelu("tanh")), ("gelu_pytorch_tanh", Gelu("tanh"))]
)
def test_known_activations_are_the_same_functions(name: str, expected: Gelu) -> None:
    assert activation_of(ACT2FN[name]) == expected
    x = torch.linspace(-9, 9, 1001)
    torch.testing.assert_close(expected(x), ACT2FN[name](x), rtol=ROUNDING, atol=ROUNDING)


def test_other_activations_are_left_alone() -> None:
    silu = nn.SiLU()
    assert activation_of(silu) is silu
