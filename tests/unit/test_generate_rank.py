"""The rank loop of `astra generate` in one process: tokens, times, traffic, what is streamed, how it fails."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import worker_worlds
from torch import Tensor
from transport_worlds import free_port
from worker_worlds import WORDS, Notebook, World, served

from astra import joining
from astra.config import BenchConfig, InputConfig
from astra.errors import ConfigError, PeerTimeoutError
from astra.generate import _Tally, run_generation
from astra.generation_measure import GenerationResult
from astra.reporting import Links
from astra.sampling import Sampler

STRATEGIES: list[Any] = [{"name": "single"}, {"name": "tensor"}, {"name": "sequence"}, {"name": "pipeline"}]
NEW_TOKENS = 4


@pytest.fixture(autouse=True)
def generating(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the worlds of the benchmark's tests generate; nobody counts packets, so nothing has to settle."""
    monkeypatch.setattr(worker_worlds, "run_rank", run_generation)
    monkeypatch.setattr("astra.rank.SETTLE_S", 0.0)


def config(strategies: list[Any], **changes: Any) -> BenchConfig:
    settings: dict[str, Any] = {
        "model": {"family": "llama", "size": "tiny", "num_tokens": 12},
        "strategies": tuple(strategies),
        "generation": {"max_new_tokens": NEW_TOKENS},
        "requests": 2,
        "warmup": 1,
        "timeout_s": 20.0,
    }
    return BenchConfig.model_validate(settings | changes)


def tokens_of(world: World) -> dict[str, list[tuple[int, ...]]]:
    results: list[GenerationResult] = world.results  # type: ignore[assignment]
    return {result.strategy.name: [text.tokens for text in result.texts] for result in results}


@pytest.mark.parametrize("generation", [{}, {"temperature": 1.5, "top_k": 50, "seed": 3}], ids=["greedy", "sampled"])
def test_generate_reports_equal_tokens_and_times_of_every_strategy(tmp_path: Path, generation: dict[str, Any]) -> None:
    wanted = {"max_new_tokens": NEW_TOKENS} | generation
    world = served(config(STRATEGIES, generation=wanted, partition=[1.0, 2.0]), tmp_path)
    tokens = tokens_of(world)
    assert all(texts == tokens["single"] for texts in tokens.values())
    assert [len(text) for text in tokens["single"]] == [NEW_TOKENS] * 2
    assert tokens["single"][0] != tokens["single"][1], "two prompts, two texts"
    for row in world.summary().values():
        assert row["agreement_tokens_pct"] == 100.0
        assert row["time_to_first_token_s"] > 0  # type: ignore[operator]
        assert row["time_per_token_s"] > 0  # type: ignore[operator]
        assert row["tokens"] == NEW_TOKENS
        assert row["bytes_per_token_counted"] is None, "nobody counts without a testbed"
    rows = world.notebooks[0].rows["requests"]
    assert len(rows) == 2 * len(STRATEGIES)
    assert rows[0]["token_ids"] == " ".join(map(str, tokens["single"][0]))


@pytest.mark.parametrize("placement", ["replicated", "terminal"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: strategy["name"])
def test_generate_sends_exactly_the_predicted_bytes(tmp_path: Path, strategy: Any, placement: Any) -> None:
    wanted = config([strategy], input=InputConfig(placement=placement), warmup=0)
    world = served(wanted, tmp_path, world_size=2 if strategy["name"] == "tensor" else 3)
    result: Any = world.results[0]
    sent = sum(recorder.payload_bytes() for recorder in world.recorders)
    assert wanted.requests * (result.prefill.predicted_bytes + result.decode.predicted_bytes) == sent


def test_generate_counts_links_by_phase(tmp_path: Path) -> None:
    def links(rank: int, name: str) -> Links:
        """Prefills carry 1000 bytes each and decoding 30, on the one link that ends at each rank."""
        phase, _, number = name.partition(":")[2].partition(" ")
        texts = int(number or 0)
        count = {"begin": 0, "prefill": 1030 * texts + 1000, "decode": 1030 * texts + 1030}[phase]
        return {"d9": {"bytes": 5 + count, "packets": count, "lost": count // 1030, "overflowed": 0}}

    world = served(config([{"name": "sequence"}]), tmp_path, links=links)
    [row] = world.summary().values()
    assert row["bytes_per_prefill_counted"] == 2 * 1000
    assert row["bytes_per_token_counted"] == 2 * 30 / (NEW_TOKENS - 1)
    assert row["packets_lost_per_request"] == 2.0
    assert world.notebooks[0].marks == [
        f"sequence wire=fp32:{moment}" for moment in ("begin", "prefill 0", "decode 0", "prefill 1", "decode 1")
    ]


def test_generate_streams_text_as_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []
    monkeypatch.setattr(worker_worlds, "run_rank", lambda *arguments: run_generation(*arguments, watch=pieces.append))
    world = served(config([{"name": "single"}], requests=1), tmp_path, world_size=1)
    [tokens] = tokens_of(world)["single"]
    assert pieces[0] == "\nsingle, text 1: "
    assert len(pieces) > 2, "piece by piece"
    shown = "".join(pieces[1:])
    assert shown == b"".join(bytes([t]) if t < 256 else f"<{t}>".encode() for t in tokens).decode(errors="replace")


def test_generate_says_how_far_it_is_where_nobody_watches(tmp_path: Path) -> None:
    steps = served(config([{"name": "single"}]), tmp_path).notebooks[0].steps
    assert steps[-1] == ("single tokens", 3 * NEW_TOKENS, 3 * NEW_TOKENS)
    assert [done for _, done, _ in steps] == sorted({done for _, done, _ in steps})


def test_generate_checks_a_checkpoint_again_when_it_is_here(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 14}')
    model = {"family": "llama", "size": "tiny", "num_tokens": 12, "checkpoint": str(folder)}
    world = worker_worlds.serve(config([{"name": "single"}], model=model), tmp_path, world_size=1)
    assert isinstance(world.errors[0], ConfigError)
    assert str(world.errors[0]) == (
        "config: generation.max_new_tokens must be at most 3 after a prompt of 12 tokens, as the model has "
        "14 positions, got 4; ask for fewer tokens or use a shorter prompt"
    )


def test_generate_idles_longer_than_any_one_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 has nothing to do while rank 0 decodes, which may take one wait a token."""

    class Slow(Sampler):
        def choose(self, logits_C: Tensor, request: int, step: int) -> int:
            time.sleep(0.4)
            return super().choose(logits_C, request, step)

    monkeypatch.setattr("astra.generate.Sampler", Slow)
    world = served(config([{"name": "single"}], timeout_s=1.0, warmup=0), tmp_path)
    assert {tag.phase for _, tag, _ in world.recorders[1].sent} <= WORDS
    [row] = world.summary().values()
    assert row["time_per_token_s"] >= 0.4  # type: ignore[operator]


def test_generate_lets_nobody_send_before_rank_0_has_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 is through long before rank 0: its counters and timeline are not to be taken for traffic of decoding."""
    events: list[str] = []

    class Noted(_Tally):
        def to_json(self) -> bytes:
            events.append("counters sent")
            return super().to_json()

    def links(rank: int, name: str) -> Links:
        if rank == 0 and name.endswith("decode 0"):
            time.sleep(0.3)
            events.append("marked")
        return {}

    monkeypatch.setattr("astra.generate._Tally", Noted)
    served(config([{"name": "single"}], requests=1, warmup=0), tmp_path, links=links)
    assert events == ["marked", "counters sent", "counters sent"]


def test_generate_goes_on_with_what_has_been_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As between the cells of a sweep: each rank is asked for the same once more."""
    asked: dict[int, int] = {}
    loaded: list[Any] = []
    load_model = joining.load_model

    all_have_ended = threading.Barrier(2)

    def again(notebook: Notebook) -> bool:
        all_have_ended.wait()  # the controller asks when all have
        asked[id(notebook)] = asked.get(id(notebook), 0) + 1
        return asked[id(notebook)] < 2

    def load_and_count(config: Any) -> Any:
        loaded.append(config)
        return load_model(config)

    monkeypatch.setattr(Notebook, "again", again)
    monkeypatch.setattr(joining, "load_model", load_and_count)
    world = served(config([{"name": "single"}, {"name": "sequence"}]), tmp_path, port=free_port())
    assert list(asked.values()) == [2, 2]
    assert len(loaded) == 2, "once on each rank"
    rows = world.notebooks[0].rows
    assert [row["strategy"] for row in rows["summary"]] == ["single", "sequence"] * 2
    texts = [row["token_ids"] for row in rows["requests"]]
    assert texts[: len(texts) // 2] == texts[len(texts) // 2 :]


def test_generate_names_what_it_was_doing_when_a_peer_is_gone(tmp_path: Path) -> None:
    world = worker_worlds.serve(config([{"name": "sequence"}], timeout_s=0.5, warmup=0), tmp_path, present=[0])
    assert isinstance(world.errors[0], PeerTimeoutError)
