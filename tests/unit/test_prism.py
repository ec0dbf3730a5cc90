"""PRISM attends to its own tokens exactly and to the others' means, and is exact where a mean is one token."""

from collections.abc import Sequence

import pytest
import torch
from strategy_worlds import EXACT, FAMILIES, SPLITS, check_predicted, inputs_for, lively, relative_error, serve
from torch import Tensor

from astra.models import Block, ModelAdapter
from astra.partition import split
from astra.segments import cut_segments
from astra.strategies import STRATEGIES, predict_bytes
from astra.strategy_config import PrismConfig, WireName


@pytest.fixture(scope="module", params=FAMILIES)
def each_model(request: pytest.FixtureRequest) -> ModelAdapter:
    return lively(request.param)


@pytest.fixture(scope="module")
def model() -> ModelAdapter:
    return lively("vit")


@pytest.fixture(scope="module")
def inputs(model: ModelAdapter) -> Tensor:
    return inputs_for(model)


@pytest.mark.parametrize("weights", SPLITS, ids=str)
def test_prism_with_a_segment_per_token_equals_single(each_model: ModelAdapter, weights: list[float]) -> None:
    config, inputs = PrismConfig(compression_ratio=1.0), inputs_for(each_model)
    world = serve(each_model, config, weights, inputs)
    assert relative_error(world.logits, each_model.forward(inputs)) < EXACT
    check_predicted(each_model, config, weights, world.traffic)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 3.0, 2.0]], ids=str)
@pytest.mark.parametrize("num_segments", [1, 4])
def test_prism_sees_others_as_repeated_means(each_model: ModelAdapter, weights: list[float], num_segments: int) -> None:
    config, inputs = PrismConfig(num_segments=num_segments), inputs_for(each_model)
    world = serve(each_model, config, weights, inputs)
    expected = prism_by_repetition(each_model, inputs, weights, num_segments)
    assert relative_error(world.logits, expected) < EXACT < relative_error(world.logits, each_model.forward(inputs))
    check_predicted(each_model, config, weights, world.traffic)


def prism_by_repetition(model: ModelAdapter, inputs: Tensor, weights: Sequence[float], num_segments: int) -> Tensor:
    """Compute PRISM's answer in one place: every rank sees each remote mean as often as it stands for a token."""
    shape = model.shape
    x_BTD = model.embed(inputs)
    stops = [tokens.stop + shape.num_class_tokens for tokens in split(shape.num_content_tokens, weights)]
    slices = [range(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]
    for block in model.blocks:
        outputs = []
        for rank, own in enumerate(slices):
            own_BTD, positions = x_BTD[:, own.start : own.stop], torch.arange(own.start, own.stop)
            u_BTD = block.attention_input(own_BTD)
            keys = [block.key_value(u_BTD, positions)]
            for peer in range(len(slices)):
                if peer != rank and (peer < rank or not shape.causal):
                    keys += repeated_means(block, x_BTD, slices[peer], num_segments)
            k, v = (torch.cat(parts, dim=2) for parts in zip(*keys, strict=True))
            context_BTD = attend_by_hand(block.query(u_BTD, positions), k, v, len(own) if shape.causal else 0)
            outputs.append(block.finish(own_BTD, context_BTD))
        x_BTD = torch.cat(outputs, dim=1)
    return model.head(x_BTD[:, shape.answer_token])


def repeated_means(block: Block, x_BTD: Tensor, rows: range, num_segments: int) -> list[tuple[Tensor, Tensor]]:
    """Return k and v of each segment's mean, at the position of its middle token, once for each token."""
    repeated = []
    for segment in cut_segments(len(rows), num_segments):
        mean_B1D = x_BTD[:, rows.start + segment.start : rows.start + segment.stop].mean(dim=1, keepdim=True)
        middle = torch.tensor([rows.start + (segment.start + segment.stop - 1) // 2])
        k, v = block.key_value(block.attention_input(mean_B1D), middle)
        repeated.append((k.expand(-1, -1, len(segment), -1), v.expand(-1, -1, len(segment), -1)))
    return repeated


def attend_by_hand(q: Tensor, k: Tensor, v: Tensor, num_masked: int) -> Tensor:
    """Attend to all keys, but among the first `num_masked` only to those up to the query itself."""
    group = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, dim=1).mT / q.shape[-1] ** 0.5
    scores[..., :num_masked] += torch.full((q.shape[2], num_masked), -torch.inf).triu(1)
    return (scores.softmax(dim=-1) @ v.repeat_interleave(group, dim=1)).transpose(1, 2).flatten(2)


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
    ranges = STRATEGIES["prism"].partition(model.shape, PrismConfig(num_segments=2), [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="num_segments must be at most the 8 tokens"):
        STRATEGIES["prism"].plan(model.shape, PrismConfig(num_segments=9), ranges, [1.0] * 3)
