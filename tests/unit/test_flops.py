"""Counted operations equal the formulas, whatever path attention takes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from strategy_worlds import inputs_for, lively
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from astra.flops import counted_flops


@pytest.mark.parametrize("inference", [True, False])
def test_flops_of_products_are_two_per_multiplication(inference: bool) -> None:
    linear, x = nn.Linear(16, 32), torch.randn(3, 8, 16)
    with torch.inference_mode(inference), counted_flops() as count:
        linear(x)
        x @ x.mT
        F.layer_norm(F.gelu(x), (16,)).softmax(dim=-1)
    assert count.total == 2 * 3 * 8 * 16 * 32 + 2 * 3 * 8 * 8 * 16


@pytest.mark.parametrize(
    "how",
    [{}, {"is_causal": True}, {"attn_mask": torch.zeros(8, 8)}, {"enable_gqa": True}],
    ids=lambda how: str([*how]),
)
def test_flops_of_attention_count_every_pair(how: dict[str, Any]) -> None:
    kv_heads = 2 if "enable_gqa" in how else 4
    q, k, v = torch.randn(2, 4, 8, 16), *torch.randn(2, 2, kv_heads, 8, 16).unbind()
    with torch.inference_mode(), counted_flops() as count:
        F.scaled_dot_product_attention(q, k, v, **how)
    assert count.total == 2 * 2 * (2 * 4 * 8 * 8 * 16)


@pytest.mark.parametrize("family", ["vit", "bert", "gpt2", "llama"])
def test_flops_of_models_equal_torchs_counter_but_for_attention(family: str) -> None:
    model = lively(family)
    inputs, shape = inputs_for(model), model.shape
    with torch.inference_mode():
        with counted_flops() as count:
            model.forward(inputs)
        with FlopCounterMode(display=False) as torchs:
            model.forward(inputs)
    attention = 2 * 2 * shape.num_layers * shape.num_heads * shape.num_tokens**2 * shape.head_width
    assert count.total == torchs.get_total_flops() + attention
