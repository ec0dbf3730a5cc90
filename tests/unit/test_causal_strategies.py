"""In a causal model no strategy lets a token see a later one, on any rank."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from strategy_worlds import TIMEOUT_S, inputs_for, lively
from torch import Tensor

from astra.collectives import Collectives
from astra.models import ModelAdapter
from astra.strategies import STRATEGIES, RankContext, Request
from astra.strategy_config import GalaxyConfig, PipelineConfig, PrismConfig, TensorConfig
from astra.timeline import Timeline
from astra.transport.inproc import connect

WEIGHTS = [1.0, 2.0, 1.5]
ROUNDING = 1e-5  # fp32 sums in another order


class ListeningBlock:
    """A block that keeps what it returned last."""

    def __init__(self, block: Any, heard: list[Tensor]):
        self._block = block
        self._heard = heard

    def __getattr__(self, name: str) -> Any:
        return getattr(self._block, name)

    def finish(self, x: Tensor, context: Tensor) -> Tensor:
        self._heard.append(self._block.finish(x, context))
        return self._heard[-1]

    def after_mlp(self, a: Tensor, m: Tensor) -> Tensor:
        self._heard.append(self._block.after_mlp(a, m))
        return self._heard[-1]


class ListeningModel:
    """A model whose blocks tell what they returned."""

    def __init__(self, model: ModelAdapter):
        self._model = model
        self.heard: list[Tensor] = []
        self.blocks = [ListeningBlock(block, self.heard) for block in model.blocks]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def last_rows(model: ModelAdapter, config: Any, inputs: Tensor) -> list[Tensor]:
    """Return x after each rank's last layer, as that rank has it."""
    strategy = STRATEGIES[config.name]
    ranges = strategy.partition(model.shape, config, WEIGHTS)
    transports = connect(len(WEIGHTS))

    def one_rank(rank: int) -> Tensor:
        heard: Any = ListeningModel(model)
        context = RankContext(heard, Collectives(transports[rank], TIMEOUT_S), ranges, tuple(WEIGHTS), Timeline(rank))
        own = model.input_rows(ranges[rank])
        strategy(context, config).forward(Request(0, inputs[:, own.start : own.stop], own.start))
        last: Tensor = heard.heard[-1]
        return last

    with ThreadPoolExecutor(len(WEIGHTS)) as pool:
        return list(pool.map(one_rank, range(len(WEIGHTS))))


def in_order(shape: Any, rows: Sequence[Tensor]) -> list[Tensor]:
    """Return every version of the whole of x that the ranks hold: their slices side by side, or each one's copy."""
    whole = shape.num_content_tokens
    return list(rows) if rows[0].shape[1] == whole else [torch.cat(list(rows), dim=1)]


@pytest.mark.parametrize(
    "config", [TensorConfig(), PipelineConfig(), GalaxyConfig(), PrismConfig(num_segments=2)], ids=lambda c: c.name
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_no_row_depends_on_a_later_token(family: str, config: Any) -> None:
    model = lively(family)
    inputs = inputs_for(model)
    before = in_order(model.shape, last_rows(model, config, inputs))
    for first in (1, 5, 12, 24):
        changed = inputs.clone()
        changed[:, first:] = (changed[:, first:] + 1) % model.shape.vocabulary
        for old, new in zip(before, in_order(model.shape, last_rows(model, config, changed)), strict=True):
            torch.testing.assert_close(new[:, :first], old[:, :first], rtol=ROUNDING, atol=ROUNDING)
            assert not torch.isclose(new[:, first:], old[:, first:]).all(dim=-1).any(), "what changed is not ignored"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_prism_of_a_causal_model_sends_to_later_ranks_only(family: str) -> None:
    shape = lively(family).shape
    ranges = STRATEGIES["prism"].partition(shape, PrismConfig(num_segments=2), WEIGHTS)
    planned = STRATEGIES["prism"].plan(shape, PrismConfig(num_segments=2), ranges, WEIGHTS)
    links = [(message.source, message.destination, message.count) for message in planned]
    assert links == [(0, 1, 4), (0, 2, 4), (1, 2, 4), (2, 0, 1)]
