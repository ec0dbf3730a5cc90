"""PRISM attends to its own tokens exactly and to the others' means, and is exact where a mean is one token."""

from collections.abc import Sequence

import pytest
import torch
from strategy_worlds import EXACT, SPLITS, check_predicted, inputs_for, lively_vit, relative_error, serve
from torch import Tensor

from astra.models import ModelAdapter
from astra.partition import split
from astra.segments import cut_segments
from astra.strategies import STRATEGIES, predict_bytes
from astra.strategy_config import PrismConfig, WireName


@pytest.fixture(scope="module")
def model() -> ModelAdapter:
    return lively_vit()


@pytest.fixture(scope="module")
def inputs(model: ModelAdapter) -> Tensor:
    return inputs_for(model)


@pytest.mark.parametrize("weights", SPLITS, ids=str)
def test_prism_with_a_segment_per_token_equals_single(
    model: ModelAdapter, inputs: Tensor, weights: list[float]
) -> None:
    config = PrismConfig(compression_ratio=1.0)
    world = serve(model, config, weights, inputs)
    assert relative_error(world.logits, model.forward(inputs)) < EXACT
    check_predicted(model, config, weights, world.traffic)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 3.0, 2.0]], ids=str)
@pytest.mark.parametrize("num_segments", [1, 4])
def test_prism_sees_others_as_repeated_means(
    model: ModelAdapter, inputs: Tensor, weights: list[float], num_segments: int
) -> None:
    world = serve(model, PrismConfig(num_segments=num_segments), weights, inputs)
    expected = prism_by_repetition(model, inputs, weights, num_segments)
    assert relative_error(world.logits, expected) < EXACT < relative_error(world.logits, model.forward(inputs))


def prism_by_repetition(model: ModelAdapter, inputs: Tensor, weights: Sequence[float], num_segments: int) -> Tensor:
    """Compute PRISM's answer in one place: per rank, replace the others' rows by their segment's mean."""
    x_BTD = model.embed(inputs)
    slices = [tokens.stop + 1 for tokens in split(model.shape.num_content_tokens, weights)]  # the class token leads
    bounds = [range(start, stop) for start, stop in zip([0, *slices], slices, strict=False)]
    for block in model.blocks:
        repeated_BTD = torch.cat(
            [
                x_BTD[:, rows.start + segment.start : rows.start + segment.stop]
                .mean(dim=1, keepdim=True)
                .expand(-1, len(segment), -1)
                for rows in bounds
                for segment in cut_segments(len(rows), num_segments)
            ],
            dim=1,
        )
        outputs = []
        for rows in bounds:
            seen_BTD = repeated_BTD.clone()
            own_BTD = seen_BTD[:, rows.start : rows.stop] = x_BTD[:, rows.start : rows.stop]
            k, v = block.key_value(block.attention_input(seen_BTD))
            q = block.query(block.attention_input(own_BTD))
            weights_BHTS = torch.softmax(q @ k.mT / model.shape.head_width**0.5, dim=-1)
            outputs.append(block.finish(own_BTD, (weights_BHTS @ v).transpose(1, 2).flatten(2)))
        x_BTD = torch.cat(outputs, dim=1)
    return model.head(x_BTD[:, 0])


@pytest.mark.parametrize("wire", ["fp16", "int8", "int4"])
def test_prism_sends_means_in_any_wire(model: ModelAdapter, inputs: Tensor, wire: WireName) -> None:
    weights, exact = [1.0, 2.0, 1.0], PrismConfig(num_segments=3)
    config = PrismConfig(num_segments=3, wire=wire)
    world = serve(model, config, weights, inputs)
    check_predicted(model, config, weights, world.traffic)
    assert relative_error(world.logits, serve(model, exact, weights, inputs).logits) < 0.3


def test_prism_sends_one_row_in_compression_ratio(model: ModelAdapter) -> None:
    sequence, prism = (
        predict_bytes(model.shape, config, 2, [13.0, 12.0])
        for config in (PrismConfig(compression_ratio=1.0), PrismConfig(compression_ratio=12.0))
    )
    assert prism == 4 * 2 * 64 * 4
    assert sequence == 26 * 4 * 64 * 4


def test_prism_refuses_more_segments_than_tokens(model: ModelAdapter) -> None:
    ranges = STRATEGIES["prism"].partition(model.shape, [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="num_segments must be at most the 8 tokens"):
        STRATEGIES["prism"].plan(model.shape, PrismConfig(num_segments=9), ranges, [1.0] * 3)
