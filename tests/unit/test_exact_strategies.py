"""Tensor, pipeline and Galaxy equal `single`, send what their formulas say, and refuse worlds that cannot be."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from strategy_worlds import (
    EXACT,
    FAMILIES,
    SPLITS,
    TIMEOUT_S,
    check_predicted,
    inputs_for,
    lively,
    relative_error,
    serve,
)
from torch import Tensor

from astra.collectives import Collectives
from astra.models import ModelAdapter
from astra.strategies import STRATEGIES, RankContext, Request, predict_bytes
from astra.strategies.pipeline import PipelineStrategy
from astra.strategy_config import GalaxyConfig, PipelineConfig, TensorConfig, WireName
from astra.timeline import Timeline
from astra.transport.inproc import connect

LOSSY: dict[WireName, float] = {
    "fp16": 5e-3,  # 11 bits of mantissa, rounded at every hop
    "int8": 6e-2,  # half a step is 1/254 of a row's largest value, at every hop
    "int4": 1.0,  # half a step is 1/14 of it: sums of sums are hardly of use
}
UNEVEN = [1.0, 2.0, 1.5]


def can_deal_heads(model: ModelAdapter, config: Any, weights: Sequence[float]) -> bool:
    even = len(set(weights)) == 1
    return not (isinstance(config, TensorConfig) and even and model.shape.num_heads % len(weights))


@pytest.fixture(scope="module", params=FAMILIES)
def each_model(request: pytest.FixtureRequest) -> ModelAdapter:
    return lively(request.param)


@pytest.fixture(scope="module")
def model() -> ModelAdapter:
    return lively("vit")


@pytest.fixture(scope="module")
def inputs(model: ModelAdapter) -> Tensor:
    return inputs_for(model)


@pytest.fixture(scope="module")
def expected(model: ModelAdapter, inputs: Tensor) -> Tensor:
    return model.forward(inputs)


@pytest.mark.parametrize("config", [TensorConfig(), PipelineConfig(), GalaxyConfig()], ids=lambda c: c.name)
@pytest.mark.parametrize("weights", SPLITS, ids=str)
def test_exact_strategies_equal_single_and_send_what_is_predicted(
    each_model: ModelAdapter, config: Any, weights: list[float]
) -> None:
    if not can_deal_heads(each_model, config, weights):
        return
    inputs = inputs_for(each_model)
    world = serve(each_model, config, weights, inputs)
    assert relative_error(world.logits, each_model.forward(inputs)) < EXACT
    check_predicted(each_model, config, weights, world.traffic)


@pytest.mark.parametrize("kind", [TensorConfig, PipelineConfig, GalaxyConfig])
@pytest.mark.parametrize("wire", list(LOSSY))
def test_exact_strategies_with_narrow_wires_stay_close_and_are_not_exact(
    model: ModelAdapter, inputs: Tensor, expected: Tensor, kind: Any, wire: WireName
) -> None:
    config = kind(wire=wire)
    world = serve(model, config, UNEVEN, inputs)
    assert EXACT < relative_error(world.logits, expected) < LOSSY[wire]
    check_predicted(model, config, UNEVEN, world.traffic)


@pytest.mark.parametrize("config", [TensorConfig(), PipelineConfig(wire="fp16"), GalaxyConfig()], ids=lambda c: c.name)
def test_exact_strategies_keep_the_batch_dimension(model: ModelAdapter, inputs: Tensor, config: Any) -> None:
    both = torch.cat((inputs, inputs.flip(3)))
    together = serve(model, config, UNEVEN, both).logits
    apart = [serve(model, config, UNEVEN, one).logits for one in both.split(1)]
    assert relative_error(together, torch.cat(apart)) < EXACT


def test_tensor_refuses_a_world_size_that_does_not_divide_the_heads(model: ModelAdapter) -> None:
    with pytest.raises(ValueError, match="must divide the model's 4 heads, got 3; use 1, 2, 4 devices, or"):
        STRATEGIES["tensor"].partition(model.shape, TensorConfig(), [2.0, 2.0, 2.0])
    assert len(STRATEGIES["tensor"].partition(model.shape, TensorConfig(), UNEVEN)) == 3


@pytest.mark.parametrize(("name", "what"), [("tensor", "heads"), ("galaxy", "heads"), ("pipeline", "layers")])
def test_strategies_refuse_more_ranks_than_parts(model: ModelAdapter, name: str, what: str) -> None:
    with pytest.raises(ValueError, match=f"at most the model's 4 {what}, got 5; use fewer devices"):
        STRATEGIES[name].partition(model.shape, None, [1.0, 1.0, 1.0, 1.0, 2.0])


def test_predictions_of_the_published_shape(model: ModelAdapter) -> None:
    """ViT-Base, 1,024 tokens and a class token, four devices, fp32: T·D is 3.1 MB."""
    shape = replace(model.shape, num_layers=12, width=768, num_heads=12, num_content_tokens=1024)
    whole = 1025 * 768 * 4
    assert predict_bytes(shape, TensorConfig(), 4) == 12 * 2 * 2 * 3 * whole
    assert predict_bytes(shape, GalaxyConfig(), 4) == 12 * 2 * 2 * 3 * whole
    assert predict_bytes(shape, PipelineConfig(), 4) == 3 * whole + 768 * 4


def test_pipeline_keeps_requests_under_way_and_answers_in_order(
    model: ModelAdapter, inputs: Tensor, expected: Tensor
) -> None:
    """Rank 0 hands over its third request before it has the answer of the first, and never a fourth."""
    config, both = PipelineConfig(in_flight=3), [inputs, inputs.flip(3)]
    answers, sent = serve_many(model, config, [both[number % 2] for number in range(6)])
    assert len(answers) == 6
    assert relative_error(answers[0], expected) < EXACT
    assert torch.equal(answers[0], answers[2])
    assert relative_error(answers[1], model.forward(both[1])) < EXACT
    assert sent == [3, 4, 5, 6, 6, 6], "requests handed over by the time of each answer"


def serve_many(model: ModelAdapter, config: PipelineConfig, inputs: list[Tensor]) -> tuple[list[Tensor], list[int]]:
    """Answer several requests on two ranks; return rank 0's answers and how many it had sent when it got each."""
    transports = connect(2)
    ranges = PipelineStrategy.partition(model.shape, config, [1.0, 1.0])

    def one_rank(rank: int) -> list[tuple[Tensor | None, int]]:
        collectives = Collectives(transports[rank], TIMEOUT_S)
        strategy = PipelineStrategy(RankContext(model, collectives, ranges, (1.0, 1.0), Timeline(rank)), config)
        requests = [Request(index, each) for index, each in enumerate(inputs)]
        return [(logits, transports[rank].traffic.messages_sent) for logits in strategy.forward_many(requests)]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(one_rank, range(2))
    assert [logits for logits, _ in second] == [None] * len(inputs)
    return [logits for logits, _ in first if logits is not None], [sent for _, sent in first]


def test_timelines_name_what_every_layer_did(model: ModelAdapter, inputs: Tensor) -> None:
    names = {"embed", "encode", "send", "wait", "attention", "rest"}
    for config in (TensorConfig(), GalaxyConfig()):
        timelines = serve(model, config, [1.0, 1.0], inputs).timelines
        assert set(timelines[0].totals(0)) == names | {"head"}
        assert set(timelines[1].totals(0)) - {"send"} == names - {"send"}
