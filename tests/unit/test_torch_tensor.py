"""PyTorch's own tensor parallelism, as scenarios/programs/torch_tensor.py runs it beside ours, over the loopback."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from loopback import free_port

from astra.config import ModelConfig
from astra.config_file import load_config
from astra.models import planned_shape
from astra.models.vit import build_vit
from astra.presets import PRESETS
from astra.strategies.tensor import TensorStrategy
from astra.strategy_config import TensorConfig
from astra.traffic import bytes_of
from testbed.scenario import load
from testbed.sweep import cells

PROGRAMS = Path(__file__).parents[2] / "scenarios" / "programs"
SPLIT_TOLERANCE = 1e-5
"""Of logits, relative to the largest: sums of 64 and 256 fp32 products in another order; measured 3e-7."""
TINY = ModelConfig(family="vit", size="tiny", image_size=64)


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """The program, as a module."""
    spec = importlib.util.spec_from_file_location("torch_tensor", PROGRAMS / "torch_tensor.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def printed() -> list[dict[str, Any]]:
    """What rank 0 of two prints about a tiny model, warnings being errors."""
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    line = [sys.executable, "-W", "error", PROGRAMS / "torch_tensor.py", "--size", "tiny", "--image-size", "64"]
    ranks = [
        subprocess.Popen(
            line, env={**os.environ, **place, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=100) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert said[1][0] == b""
    return [json.loads(line) for line in said[0][0].splitlines()]


def test_tensor_parallel_answer_of_torch_equals_single(printed: list[dict[str, Any]]) -> None:
    single, tensor = printed
    assert [single["strategy"], tensor["strategy"]] == ["single", "tensor"]
    assert single["largest_difference"] == 0.0
    assert 0.0 < tensor["largest_difference"] < SPLIT_TOLERANCE
    assert tensor["agreement_top1_pct"] == 100.0
    assert tensor["agreement_cosine"] == pytest.approx(1.0, abs=SPLIT_TOLERANCE)


def test_program_predicts_the_traffic_of_our_own_tensor_parallelism(printed: list[dict[str, Any]]) -> None:
    shape, config = planned_shape(TINY), TensorConfig(name="tensor", wire="fp32")
    weights = (1.0, 1.0)
    messages = TensorStrategy.plan(shape, config, TensorStrategy.partition(shape, config, weights), weights)
    assert [row["bytes_per_request_predicted"] for row in printed] == [0, bytes_of(messages)]


def test_program_has_the_weights_of_our_own_model(program: ModuleType) -> None:
    ours, theirs = build_vit(TINY), program.build("tiny", 64, seed=TINY.seed)
    for (name, own), (other_name, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(own, other), name


def test_sizes_of_the_program_are_our_presets(program: ModuleType) -> None:
    presets = {size: PRESETS["vit"][size] for size in program.SIZES}
    assert {name: (each.width, each.num_layers, each.num_heads) for name, each in presets.items()} == program.SIZES


def test_scenario_takes_over_what_the_program_prints(printed: list[dict[str, Any]], tmp_path: Path) -> None:
    workload = load(PROGRAMS / "torch-tensor.yaml").workload
    assert workload.summary is not None
    assert set(workload.summary.values()) <= set(printed[0])
    config = tmp_path / "config.json"
    config.write_text(json.dumps(workload.config))
    assert [strategy.name for strategy in load_config(config, "bench").strategies] == ["single", "tensor", "astra"]


def test_sweep_asks_both_programs_at_every_rate() -> None:
    sweep = cells.load(PROGRAMS / "torch-tensor-rates.yaml")
    asked = {(cell.values["links.default.rate_mbps"], cell.scenario.workload.command[0]) for cell in sweep.cells}
    assert asked == {(rate, program) for rate in (10, 50, 200, 500) for program in ("astra", "python3")}
