"""The rank loop in one process: what it answers, what it sends, what it reports, how it fails."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback import free_port
from worker_worlds import serve, served

from astra.codebook import GroupedCodebook, save_codebooks
from astra.config import (
    AstraConfig,
    BenchConfig,
    InputConfig,
    ModelConfig,
    PipelineConfig,
    SequenceConfig,
    SingleConfig,
    StrategyConfig,
    TensorConfig,
)
from astra.errors import ConfigError, PeerTimeoutError
from astra.fit import cache_folder
from astra.rank import TRACE_FILE
from astra.reporting import Links

MODEL = ModelConfig(size="tiny", image_size=64)
SINGLE, SEQUENCE, INT8, ASTRA = (
    SingleConfig(),
    SequenceConfig(),
    SequenceConfig(wire="int8"),
    AstraConfig(num_groups=2, num_codewords=16),
)
COSINE_TOLERANCE = 1e-6
"""fp32 sums in another order; measured 1e-13 on the tiny model."""
EXACT_RELATIVE = 1e-4
"""The project's bound for exact strategies in fp32."""
SAME_ANSWER = 1e-5
"""Equal codes and equal arithmetic on both transports; only the order of arriving peers could differ."""


def bench(*strategies: StrategyConfig, **changes: Any) -> BenchConfig:
    settings: dict[str, Any] = {"requests": 2, "warmup": 0, "timeout_s": 20.0} | changes
    return BenchConfig(model=MODEL, strategies=strategies, **settings)


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody counts packets here, so nothing has to settle before a mark."""
    monkeypatch.setattr("astra.rank.SETTLE_S", 0.0)


@pytest.fixture
def codebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put drawn codewords where fitted ones would be: these tests are about the loop, not about accuracy."""
    monkeypatch.setenv("ASTRA_CACHE", str(tmp_path / "cache"))
    preset, generator = MODEL.preset, torch.Generator().manual_seed(1)
    size = (ASTRA.num_groups, ASTRA.num_codewords, preset.width // ASTRA.num_groups)
    drawn = [GroupedCodebook(torch.randn(size, generator=generator)) for _ in range(preset.num_layers)]
    save_codebooks(cache_folder(MODEL, ASTRA, InputConfig()), drawn)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_worker_sequence_agrees_with_single(tmp_path: Path, world_size: int):
    world = served(bench(SINGLE, SEQUENCE), tmp_path, world_size=world_size)
    row = world.summary()["sequence wire=fp32"]
    assert row["agreement_cosine"] == pytest.approx(1.0, abs=COSINE_TOLERANCE)
    assert row["agreement_top1_pct"] == 100.0
    single, sequence = world.results
    for reference, answer in zip(single.answers, sequence.answers, strict=True):
        assert np.linalg.norm(answer.logits - reference.logits) < EXACT_RELATIVE * np.linalg.norm(reference.logits)


@pytest.mark.usefixtures("codebooks")
def test_worker_reports_a_row_per_request_and_strategy(tmp_path: Path):
    world = served(bench(SINGLE, INT8, ASTRA, requests=3, warmup=1), tmp_path)
    rows = world.notebooks[0].rows
    assert [(row["strategy"], row["request"]) for row in rows["requests"]] == [
        (name, request) for name in ("single", "sequence", "astra") for request in range(3)
    ]
    assert list(world.summary()) == ["single", "sequence wire=int8", "astra G=2 K=16"]
    assert all(row["requests"] == 3 and row["placement"] == "replicated" for row in rows["summary"])
    assert world.notebooks[1].rows == {}, "only the terminal reports"
    assert world.summary()["single"]["speedup_vs_single"] == 1.0
    assert world.notebooks[0].steps[:4] == [("single", done, 4) for done in (1, 2, 3, 4)]
    for row in rows["requests"]:
        spans = [value for name, value in row.items() if name.endswith("_s") and name != "latency_s"]
        assert 0 < sum(value for value in spans if isinstance(value, float)) <= row["latency_s"]  # type: ignore[operator]


def test_worker_reports_throughput_with_requests_under_way(tmp_path: Path):
    world = served(bench(SINGLE, PipelineConfig(in_flight=3), TensorConfig(), requests=2), tmp_path)
    rows = world.summary()
    total_s = sum(row["latency_s"] for row in world.notebooks[0].rows["requests"][:2])  # type: ignore[misc]
    assert rows["single"]["throughput_rps"] == pytest.approx(2 / total_s)
    stages = [tag.request for _, tag, _ in world.recorders[0].sent if tag.phase == "stage"]
    assert len(stages) == 2 + 6, "two measured requests, then places for three filled twice"
    assert world.results[1].burst_rps is not None
    assert rows["pipeline wire=fp32"]["throughput_rps"] == world.results[1].burst_rps
    assert rows["tensor wire=fp32"]["agreement_top1_pct"] == 100.0


def test_worker_counts_operations_of_every_rank_during_warm_up(tmp_path: Path):
    world = served(bench(SINGLE, TensorConfig(), warmup=1), tmp_path)
    rows = world.notebooks[0].rows["ranks"]
    assert [(row["strategy"], row["rank"]) for row in rows] == [
        (name, rank) for name in ("single", "tensor") for rank in (0, 1)
    ]
    alone, idle, first, second = (row["flops_per_request"] for row in rows)
    assert (idle, rows[0]["bytes_sent_per_request_predicted"]) == (0, 0)
    assert 0.5 < second / alone < first / alone < 0.6, "half the layers each; the head is rank 0's"  # type: ignore[operator]
    assert world.summary()["tensor wire=fp32"]["flops_per_request_max_rank"] == first
    assert served(bench(SINGLE, warmup=0), tmp_path).summary()["single"]["flops_per_request_max_rank"] is None


def test_worker_without_single_leaves_comparisons_empty(tmp_path: Path):
    row = served(bench(SEQUENCE), tmp_path).summary()["sequence wire=fp32"]
    assert (row["speedup_vs_single"], row["agreement_cosine"], row["agreement_top1_pct"]) == (None, None, None)
    assert row["bytes_per_request_counted"] is None, "nobody counts without a testbed"
    assert row["packets_lost_per_request"] is None


PLACEMENTS = [
    InputConfig(),
    InputConfig(placement="terminal"),
    InputConfig(placement="terminal", encoding="png"),
]


@pytest.mark.usefixtures("codebooks")
@pytest.mark.parametrize("strategy", [SINGLE, SEQUENCE, INT8, ASTRA], ids=str)
@pytest.mark.parametrize("images", PLACEMENTS, ids=lambda images: f"{images.placement}-{images.encoding}")
def test_worker_sends_exactly_the_predicted_bytes(tmp_path: Path, strategy: StrategyConfig, images: InputConfig):
    world = served(bench(strategy, input=images, requests=3), tmp_path, world_size=3)
    [result] = world.results
    sent = sum(recorder.payload_bytes() for recorder in world.recorders)
    assert result.predicted_bytes * 3 == sent
    [row] = world.summary().values()
    assert row["bytes_per_request_predicted"] == round(sent / 3)


@pytest.mark.usefixtures("codebooks")
@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_worker_answers_do_not_depend_on_placement(tmp_path: Path, encoding: str):
    answers = {}
    for images in (InputConfig(), InputConfig.model_validate({"placement": "terminal", "encoding": encoding})):
        world = served(bench(SINGLE, SEQUENCE, ASTRA, input=images), tmp_path)
        answers[images.placement] = [answer.logits for result in world.results for answer in result.answers]
        assert all(row["placement"] == images.placement for row in world.notebooks[0].rows["requests"])
    np.testing.assert_array_equal(answers["replicated"], answers["terminal"])


@pytest.mark.usefixtures("codebooks")
def test_worker_sends_the_same_codes_over_zeromq_as_in_process(tmp_path: Path):
    config = bench(ASTRA, warmup=1)
    worlds = [served(config, tmp_path), served(config, tmp_path, port=free_port())]
    codes = [
        [[(peer, tag, payload) for peer, tag, payload in rank.sent if tag.phase == "codes"] for rank in world.recorders]
        for world in worlds
    ]
    assert codes[0] == codes[1]
    assert [len(sent) for sent in codes[0]] == [3 * MODEL.preset.num_layers] * 2, "the comparison is not empty"
    for ours, theirs in zip(worlds[0].results[0].answers, worlds[1].results[0].answers, strict=True):
        np.testing.assert_allclose(theirs.logits, ours.logits, rtol=SAME_ANSWER, atol=SAME_ANSWER)


def test_worker_counts_links_between_its_marks(tmp_path: Path):
    def links(rank: int, name: str) -> Links:
        """Rank r's incoming link carries r + 1 packets of 100 bytes a strategy, and loses r of them to its queue."""
        since = 1 if name.endswith(":end") else 0
        counters = {"bytes": 100 * (rank + 1), "packets": rank + 1, "lost": 1, "overflowed": rank}
        return {"d9": {key: 7 + value * since for key, value in counters.items()}}

    world = served(bench(SINGLE, SEQUENCE), tmp_path, world_size=3, links=links)
    for row in world.summary().values():
        assert row["bytes_per_request_counted"] == round((100 + 200 + 300) / 2)
        assert row["packets_lost_per_request"] == ((1 + 0) + (1 + 1) + (1 + 2)) / 2
    names = ["single:begin", "single:end", "sequence wire=fp32:begin", "sequence wire=fp32:end"]
    assert [notebook.marks for notebook in world.notebooks] == [names] * 3


def test_worker_writes_one_trace_of_all_ranks(tmp_path: Path):
    served(bench(SEQUENCE), tmp_path)
    events = json.loads((tmp_path / TRACE_FILE).read_text())["traceEvents"]
    assert {event["tid"] for event in events if event["ph"] == "X"} == {0, 1}


def test_worker_names_the_absent_peer_and_what_it_was_doing(tmp_path: Path):
    world = serve(bench(SINGLE, warmup=1, timeout_s=0.5), tmp_path, world_size=3, present=[0])
    assert isinstance(world.errors[0], PeerTimeoutError)
    message = str(world.errors[0])
    pattern = (
        r"rank 0, single, warm-up request 1 of 1: rank 0 waited 0\.\d+ s for ranks 1, 2: request 0, .*phase 'done'"
    )
    assert re.match(pattern, message), message
    assert world.recorders[0].aborted is True


def test_worker_closes_in_peace_after_success(tmp_path: Path):
    world = served(bench(SINGLE), tmp_path)
    assert [recorder.aborted for recorder in world.recorders] == [False, False]


def test_worker_notes_where_an_unforeseen_error_happened(tmp_path: Path):
    def links(rank: int, name: str) -> Links:
        raise RuntimeError("out of order")

    world = serve(bench(SINGLE, timeout_s=1.0), tmp_path, world_size=1, links=links)
    assert isinstance(world.errors[0], RuntimeError)
    assert world.errors[0].__notes__ == ["rank 0, single, begin mark"]


def test_worker_without_codebooks_says_how_to_fit_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ASTRA_CACHE", str(tmp_path / "empty"))
    world = serve(bench(ASTRA), tmp_path)
    for rank in (0, 1):
        error = world.errors[rank]
        assert isinstance(error, ConfigError)
        assert "astra G=2 K=16: codebooks must be fitted before, got no folder" in str(error)
        assert str(error).endswith("run `astra fit` with this config")


def test_worker_refuses_more_ranks_than_tokens(tmp_path: Path):
    config = BenchConfig(model=ModelConfig(size="tiny", image_size=16), strategies=(SINGLE, SEQUENCE))
    world = serve(config, tmp_path)
    assert isinstance(world.errors[0], ConfigError)
    assert "sequence wire=fp32: partition: tokens must be at least one per rank, got 1 for 2 ranks" in str(
        world.errors[0]
    )


def test_worker_refuses_weights_for_another_number_of_ranks(tmp_path: Path):
    world = serve(bench(SEQUENCE, partition=(1.0, 2.0, 3.0)), tmp_path)
    assert isinstance(world.errors[1], ConfigError)
    assert "partition must be 'even', 'cpus' or a list of 2 weights" in str(world.errors[1])


def test_worker_uneven_partition_still_agrees(tmp_path: Path):
    world = served(bench(SINGLE, SEQUENCE, partition=(1.0, 5.0)), tmp_path)
    assert world.summary()["sequence wire=fp32"]["agreement_cosine"] == pytest.approx(1.0, abs=COSINE_TOLERANCE)


@pytest.mark.usefixtures("codebooks")
def test_worker_finds_damaged_codebooks_before_any_strategy_runs(tmp_path: Path):
    folder = cache_folder(MODEL, ASTRA, InputConfig())
    (folder / "codebooks.safetensors").write_bytes(b"cut off")
    world = serve(bench(SINGLE, ASTRA), tmp_path)
    assert isinstance(world.errors[0], ConfigError)
    assert "codebooks.safetensors: file must be whole safetensors" in str(world.errors[0])
    assert not world.notebooks[0].rows
