"""Whole benchmarks on texts, and work dealt by CPU shares; ranks are threads of one process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worker_worlds import serve, served

from astra.config import AstraConfig, BenchConfig, InputConfig, ModelConfig, SequenceConfig, SingleConfig
from astra.errors import ConfigError
from astra.fit import ensure_fitted
from astra.strategy_config import TensorConfig

STRATEGIES = (SingleConfig(), SequenceConfig(), AstraConfig(num_codewords=16, site="kv"))
EXACT_COSINE = 1e-6
"""fp32 sums in another order."""


def bench(family: str, **changes: Any) -> BenchConfig:
    model = ModelConfig.model_validate({"family": family, "size": "tiny", "num_tokens": 37})
    settings: dict[str, Any] = {"strategies": STRATEGIES, "requests": 2, "warmup": 0, "timeout_s": 20.0} | changes
    return BenchConfig(model=model, **settings)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody counts packets, so nothing has to settle; codebooks are kept apart."""
    monkeypatch.setattr("astra.rank.SETTLE_S", 0.0)
    monkeypatch.setenv("ASTRA_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("placement", ["replicated", "terminal"])
def test_worker_serves_texts(family: str, placement: str, tmp_path: Path) -> None:
    config = bench(family, input=InputConfig.model_validate({"placement": placement}))
    ensure_fitted(config, lambda label, done, total: None)
    world = served(config, tmp_path, world_size=3)
    rows = world.summary()
    assert list(rows) == ["single", "sequence wire=fp32", "astra G=1 K=16 site=kv"]
    assert rows["sequence wire=fp32"]["agreement_cosine"] == pytest.approx(1.0, abs=EXACT_COSINE)
    sent = sum(recorder.payload_bytes() for recorder in world.recorders)
    assert sum(result.predicted_bytes for result in world.results) * config.requests == sent
    placed = [payload for _, tag, payload in world.recorders[0].sent if tag.phase == "input"]
    assert bool(placed) == (placement == "terminal")
    assert {len(payload) for payload in placed} <= {14, 15}, "12 or 13 ids of 9 bits"


def test_worker_deals_work_by_cpus(tmp_path: Path) -> None:
    config = bench("gpt2", partition="cpus", strategies=(SingleConfig(), SequenceConfig()))
    world = served(config, tmp_path, cpus=[0.6, 0.2])
    [payload, *_] = [payload for _, tag, payload in world.recorders[0].sent if tag.phase == "slice"]
    assert len(payload) == 28 * 64 * 4, "three quarters of 37 tokens, rounded"
    assert world.summary()["sequence wire=fp32"]["agreement_cosine"] == pytest.approx(1.0, abs=EXACT_COSINE)


def test_worker_says_on_every_rank_that_cpus_do_not_fit(tmp_path: Path) -> None:
    config = bench("gpt2", partition="cpus", strategies=(SingleConfig(), TensorConfig()))
    world = serve(config, tmp_path, world_size=3, cpus=[1.0, 1.0, 1.0])
    assert [str(world.errors[rank]).split(";")[0] for rank in range(3)] == [
        "tensor wire=fp32: world size must divide the model's 4 heads, got 3"
    ] * 3


def test_worker_finds_out_that_ranks_hold_different_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter(np.arange(2 * 37 * 2).reshape(2, 2, 37))
    monkeypatch.setattr("astra.joining.load_inputs", lambda *arguments: next(texts))
    world = serve(bench("gpt2", strategies=(SingleConfig(),)), tmp_path)
    for rank in (0, 1):
        assert isinstance(world.errors[rank], ConfigError)
        assert "input must be the same on every rank, got others than rank 0's on ranks [1]" in str(world.errors[rank])


def test_worker_refuses_ids_beyond_the_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astra.joining.load_inputs", lambda *arguments: np.full((2, 37), 512))
    world = serve(bench("gpt2", strategies=(SingleConfig(),)), tmp_path)
    assert "token ids must be below the model's vocabulary, 512, got 512" in str(world.errors[0])
