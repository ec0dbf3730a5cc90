"""A benchmark's labelled set: each strategy answers it on the same ranks, with weights and codebooks of its own."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback import free_port
from typer.testing import CliRunner
from worker_worlds import served

from astra.cli import app
from astra.clustering import fit_codebooks
from astra.codebook import save_codebooks
from astra.config import BenchConfig, ModelConfig
from astra.config_file import parse_config
from astra.data import load_examples, to_input
from astra.data_config import DataConfig
from astra.errors import ConfigError
from astra.evaluation import run
from astra.evaluation.config import parse_evaluation
from astra.evaluation.results import rows_of
from astra.models import build_model, load_model, save_checkpoint
from astra.transport import Tag
from astra.transport.zeromq import ZeroMqTransport

torch.set_num_threads(1)  # ranks are threads already

CODEWORDS = 32
LIMIT = 60
TINY = {"size": "tiny", "image_size": 64}
DIGITS = ModelConfig(size="digits", image_size=8, num_labels=10, seed=1)


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("astra.rank.SETTLE_S", 0.0)
    monkeypatch.setenv("ASTRA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `original`, and `tuned` for ASTRA, whose weights differ and which has codebooks beside."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save_checkpoint(folder / "original", build_model(DIGITS))
    save_checkpoint(folder / "tuned", build_model(DIGITS.model_copy(update={"seed": 2})))
    model = load_model(ModelConfig(checkpoint=str(folder / "tuned")))
    images = to_input(load_examples(DataConfig(name="digits"), DIGITS, "train", limit=50).inputs)
    save_codebooks(folder / "tuned", fit_codebooks(model, images, 1, CODEWORDS, seed=0))
    return folder


def accuracy_of(checkpoints: Path, strategies: list[Any]) -> dict[str, Any]:
    model = {"checkpoint": str(checkpoints / "original")}
    return {"data": {"name": "digits"}, "model": model, "strategies": strategies, "limit": LIMIT, "batch_size": 16}


def tuned_astra(checkpoints: Path) -> dict[str, Any]:
    return {"name": "astra", "num_codewords": CODEWORDS, "checkpoint": str(checkpoints / "tuned")}


def bench(strategies: list[Any], accuracy: dict[str, Any], model: dict[str, Any] | None = None) -> BenchConfig:
    config = {"model": model or TINY, "strategies": strategies, "accuracy": accuracy, "requests": 1, "warmup": 0}
    return parse_config(json.dumps(config), where="bench.json", command="bench")


@pytest.mark.parametrize("world_size", [2, 3])
def test_accuracy_is_reported_beside_latency(checkpoints: Path, tmp_path: Path, world_size: int) -> None:
    """Accuracy comes from the set's own model, latency from the benchmark's."""
    config = bench(["single", "sequence"], accuracy_of(checkpoints, ["single", "sequence"]))
    world = served(config, tmp_path, world_size=world_size)
    single, sequence = world.summary()["single"], world.summary()["sequence wire=fp32"]
    model = load_model(ModelConfig(checkpoint=str(checkpoints / "original")))
    examples = load_examples(DataConfig(name="digits"), DIGITS, "test", limit=LIMIT)
    predictions = model.forward(to_input(examples.inputs)).argmax(dim=1).numpy()
    assert single["accuracy_pct"] == pytest.approx(100 * (predictions == examples.labels).mean())
    assert sequence["accuracy_pct"] == single["accuracy_pct"]
    assert (single["accuracy_change_points"], sequence["accuracy_change_points"]) == (0, 0)
    assert ("sequence wire=fp32 accuracy", LIMIT, LIMIT) in world.notebooks[0].steps


def test_accuracy_of_tuned_astra_is_the_same_in_threads_over_zeromq_and_in_evaluate(
    checkpoints: Path, tmp_path: Path
) -> None:
    astra = tuned_astra(checkpoints)
    accuracy = accuracy_of(checkpoints, ["single", astra]) | {"model": None}
    config = bench(["single", astra], accuracy, _original(checkpoints))
    here = served(config, tmp_path, world_size=3).summary()["astra G=1 K=32 weights=tuned"]
    there = served(config, tmp_path, world_size=3, port=free_port()).summary()["astra G=1 K=32 weights=tuned"]
    assert there["accuracy_pct"] == here["accuracy_pct"]
    evaluation = parse_evaluation(
        {
            "model": _original(checkpoints),
            "data": {"name": "digits"},
            "strategies": ["single", astra],
            "devices": [3],
            "limit": LIMIT,
            "batch_size": 7,
        },
        where="e.yaml",
    )
    row = rows_of(evaluation, run.evaluate_here(evaluation, lambda title, done, total: None))[1]
    assert here["accuracy_pct"] == pytest.approx(100 * row["value"])
    assert here["accuracy_change_points"] == pytest.approx(100 * row["change_vs_single"])


def test_ranks_begin_every_batch_together_where_rows_may_be_late(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message that begins a batch takes longer than rows are waited for, as if TCP had to send it again."""
    astra = tuned_astra(checkpoints)
    datagram = astra | {"transport": {"name": "datagram", "deadline_ms": 400}}
    accuracy = accuracy_of(checkpoints, ["single", astra, datagram]) | {"model": None, "batch_size": LIMIT // 2}
    config = bench(["single", astra, datagram], accuracy, _original(checkpoints))
    receive = ZeroMqTransport.receive

    def slowly(self: ZeroMqTransport, peer: int, tag: Tag, timeout_s: float) -> memoryview:
        payload = receive(self, peer, tag, timeout_s)
        if tag.phase == "start" and self.rank == 1:
            time.sleep(0.7)
        return payload

    monkeypatch.setattr(ZeroMqTransport, "receive", slowly)
    rows = served(config, tmp_path, world_size=2, port=free_port()).summary()
    reliable, lossy = rows["astra G=1 K=32 weights=tuned"], rows["astra G=1 K=32 datagram deadline=400 weights=tuned"]
    assert lossy["accuracy_pct"] == reliable["accuracy_pct"]
    assert lossy["missing_tokens_pct"] == 0


def test_latency_too_is_measured_with_the_strategys_own_weights(checkpoints: Path, tmp_path: Path) -> None:
    """The tuned weights draw other logits, so that agreement falls; nothing had to be fitted."""
    strategies = ["single", "sequence", {"name": "sequence", "checkpoint": str(checkpoints / "tuned")}]
    config = parse_config(
        json.dumps({"model": _original(checkpoints), "strategies": strategies, "requests": 2, "warmup": 0}),
        where="bench.json",
        command="bench",
    )
    summary = served(config, tmp_path).summary()
    assert summary["sequence wire=fp32"]["agreement_cosine"] == pytest.approx(1, abs=1e-6)
    assert summary["sequence wire=fp32 weights=tuned"]["agreement_cosine"] < 0.99


def test_without_a_labelled_set_there_is_no_accuracy(checkpoints: Path, tmp_path: Path) -> None:
    text = json.dumps({"model": _original(checkpoints), "strategies": ["single"], "requests": 1, "warmup": 0})
    row = served(parse_config(text, where="bench.json"), tmp_path, world_size=1).summary()["single"]
    assert (row["accuracy_pct"], row["accuracy_change_points"]) == (None, None)


def test_accuracy_that_cannot_be_laid_out_is_refused_at_the_start(checkpoints: Path, tmp_path: Path) -> None:
    """Sixteen tokens on two devices are too few for nine segments each; codebooks of another size are no use."""
    strategies = ["single", {"name": "prism", "num_segments": 9}, tuned_astra(checkpoints) | {"num_groups": 2}]
    accuracy = accuracy_of(checkpoints, strategies)
    config = bench(["single", {"name": "prism", "num_segments": 2}, "astra"], accuracy)
    with pytest.raises(ConfigError) as error:
        served(config, tmp_path)
    assert "accuracy: prism Ls=9: num_segments must be at most the 8 tokens" in str(error.value)
    assert "num_groups must be 2, got 1" in str(error.value)
    assert "astra G=1: codebooks must be fitted before" in str(error.value)


def _original(checkpoints: Path) -> dict[str, Any]:
    return {"checkpoint": str(checkpoints / "original")}


def test_fit_makes_what_is_not_trained_for_requests_and_for_the_labelled_set(checkpoints: Path, tmp_path: Path) -> None:
    tuned, plain = tuned_astra(checkpoints), {"name": "astra", "num_codewords": 4}
    accuracy = accuracy_of(checkpoints, [tuned, plain])
    config = {"model": TINY, "strategies": [plain | {"num_groups": 2}, plain], "accuracy": accuracy}
    (tmp_path / "bench.json").write_text(json.dumps(config))
    result = CliRunner().invoke(app, ["fit", "--config", str(tmp_path / "bench.json")])
    assert result.exit_code == 0, result.output
    assert "fit: 3 fitted, 0 found in the cache, 1 trained with their weights, " in result.output


def test_fit_takes_the_config_of_an_evaluation_too(checkpoints: Path, tmp_path: Path) -> None:
    strategies = [tuned_astra(checkpoints), {"name": "astra", "num_codewords": 4}]
    config = {"model": _original(checkpoints), "data": {"name": "digits"}, "strategies": strategies}
    (tmp_path / "e.json").write_text(json.dumps(config))
    result = CliRunner().invoke(app, ["fit", "--config", str(tmp_path / "e.json")])
    assert result.exit_code == 0, result.output
    assert "fit: 1 fitted, 0 found in the cache, 1 trained with their weights, " in result.output
