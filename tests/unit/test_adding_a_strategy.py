"""The example in docs/adding-a-strategy.md is complete: it runs as it stands there, and behaves as the page says."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from strategy_worlds import EXACT, check_predicted, inputs_for, lively, relative_error, serve

from astra.models import ModelAdapter
from astra.models.block import run_blocks
from astra.partition import split
from astra.strategies import STRATEGIES

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-strategy.md"
MOST_LINES = 40


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def example(blocks: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the page's code as one module, with its strategy registered."""
    module = ModuleType("islands")
    monkeypatch.setitem(sys.modules, "islands", module)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), module.__dict__)
    monkeypatch.setitem(STRATEGIES, "islands", module.IslandsStrategy)  # type: ignore[arg-type]
    return module


@pytest.fixture(scope="module")
def model() -> ModelAdapter:
    return lively("vit")


def test_example_strategy_is_forty_lines(blocks: list[str]) -> None:
    assert len(blocks) == 2
    assert len([line for line in blocks[1].splitlines() if line.strip()]) <= MOST_LINES


def test_example_on_one_rank_equals_single(example: Any, model: ModelAdapter) -> None:
    inputs = inputs_for(model)
    world = serve(model, example.IslandsConfig(), [1.0], inputs)
    assert relative_error(world.logits, model.forward(inputs)) < EXACT


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 3.0, 2.0]], ids=str)
def test_example_averages_islands_and_sends_what_it_plans(
    example: Any, model: ModelAdapter, weights: list[float]
) -> None:
    inputs, config = inputs_for(model), example.IslandsConfig()
    world = serve(model, config, weights, inputs)
    classes = []
    for tokens in split(model.shape.num_content_tokens, weights):
        island_BTD = torch.cat((model.embed_class(1), model.embed_content(inputs, tokens)), dim=1)
        classes.append(run_blocks(model.blocks, island_BTD, causal=False)[:, 0])
    assert relative_error(world.logits, model.head(torch.stack(classes).mean(dim=0))) < EXACT
    check_predicted(model, config, weights, world.traffic)
