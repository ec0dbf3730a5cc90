"""Ranks over loopback that are killed or cut off at every boundary of a request, under each policy."""

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from failing_worlds import Fate, Killed, Outcome, cut_off, kill, run

from astra.codebook import GroupedCodebook, save_codebooks
from astra.config import AstraConfig, BenchConfig
from astra.control import Control
from astra.errors import PeerLostError
from astra.fit import cache_folder
from astra.reporting import Row
from astra.transport import Tag

NUM_LAYERS, WIDTH = 4, 64
"""Of the tiny model."""
WARMUP, REQUESTS = 1, 3
STRUCK = WARMUP + 1
"""Index of the request in which it happens: the second that is measured."""
BOUNDARIES = [(layer, "means") for layer in range(NUM_LAYERS)] + [(0, "start"), (0, "done")]
BACK_WAIT_S = 40
"""For a rank to load its model on a busy machine."""
COSINE_TOLERANCE = 1e-6
"""Exact strategies, however many ranks they run on."""


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astra.rank.SETTLE_S", 0.0)


def bench(policy: str, *strategies: Any, **changes: Any) -> BenchConfig:
    raw = {
        "model": {"size": "tiny", "image_size": 64},
        "strategies": strategies or [{"name": "prism", "num_segments": 2}],
        "requests": REQUESTS,
        "warmup": WARMUP,
        "failures": {"on_failure": policy},
        "timeout_s": 40.0,
    }
    return BenchConfig.model_validate_json(json.dumps(raw | changes))


def at(layer: int, phase: str, index: int = STRUCK) -> Any:
    """When the victim is about to send, or for `start` to receive, the message of a boundary."""
    return lambda what, peer, tag: tag == Tag(index, layer, phase)


def columns(outcome: Outcome, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in outcome.requests]


def check_survivors(outcome: Outcome, world_size: int, victim: int) -> None:
    for rank in range(world_size):
        if rank != victim:
            assert outcome.ends[rank] is None, outcome.ends
    assert [row["request"] for row in outcome.requests] == list(range(REQUESTS)), "each is answered once"


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize(("layer", "phase"), BOUNDARIES, ids=lambda value: str(value))
def test_replan_asks_again_over_those_that_are_left(tmp_path: Path, world_size: int, layer: int, phase: str) -> None:
    victim = world_size - 1
    outcome = run(bench("replan"), tmp_path, world_size, Fate(victim, at(layer, phase), kill))
    assert isinstance(outcome.ends[victim], Killed)
    check_survivors(outcome, world_size, victim)
    attempts = [int(row["attempts"]) for row in outcome.requests]
    sizes = [row["world_size"] for row in outcome.requests]
    # Who dies after its part of an answer does not undo it; the next one is split over fewer.
    struck = (1, world_size) if phase == "done" else (2, world_size - 1)
    assert list(zip(attempts, sizes, strict=True)) == [(1, world_size), struck, (1, world_size - 1)]
    assert not any(row["degraded"] for row in outcome.requests)


@pytest.mark.parametrize("layer", range(NUM_LAYERS + 1))
def test_degrade_answers_without_the_dead_ranks_codes_and_class_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    monkeypatch.setenv("ASTRA_CACHE", str(tmp_path))
    config = bench("degrade", "single", {"name": "astra", "num_groups": 2, "num_codewords": 16})
    (fitted,) = (each for each in config.strategies if isinstance(each, AstraConfig))
    generator = torch.Generator().manual_seed(0)
    drawn = [GroupedCodebook(torch.randn(2, 16, WIDTH // 2, generator=generator)) for _ in range(NUM_LAYERS)]
    save_codebooks(cache_folder(config.model, fitted, config.input), drawn)
    struck = (WARMUP + REQUESTS) + WARMUP + 1
    phase = "codes" if layer < NUM_LAYERS else "class"
    outcome = run(config, tmp_path, 3, Fate(1, at(layer, phase, struck), kill))
    assert {rank: end for rank, end in outcome.ends.items() if rank != 1} == {0: None, 2: None}
    rows = [row for row in outcome.requests if row["strategy"] == "astra"]
    assert [(row["request"], row["degraded"], row["attempts"]) for row in rows] == [
        (0, None, 1),
        (1, "1", 1),
        (2, "1", 1),
    ]


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("layer", range(NUM_LAYERS))
def test_degrade_answers_without_the_dead_ranks_tokens(tmp_path: Path, world_size: int, layer: int) -> None:
    victim = 1
    outcome = run(bench("degrade"), tmp_path, world_size, Fate(victim, at(layer, "means"), kill))
    assert isinstance(outcome.ends[victim], Killed)
    check_survivors(outcome, world_size, victim)
    assert columns(outcome, "degraded", "attempts", "world_size") == [
        (None, 1, world_size),
        ("1", 1, world_size),
        ("1", 1, world_size),
    ]
    (summary,) = outcome.notebook.rows["summary"]
    assert (summary["requests_degraded"], summary["requests_repeated"]) == (2, 0)


@pytest.mark.parametrize("layer", range(NUM_LAYERS))
def test_fail_says_on_every_survivor_who_waited_for_whom(tmp_path: Path, layer: int) -> None:
    outcome = run(bench("fail"), tmp_path, 3, Fate(2, at(layer, "means"), kill))
    for rank in (0, 1):
        error = outcome.ends[rank]
        assert isinstance(error, PeerLostError)
        assert str(error).startswith(f"rank {rank}, prism Ls=2, request 2 of 3: rank 2 (d2) is lost: ")
        wait = rf"rank {rank} waited for rank 2: request {STRUCK}, layer {layer}, phase 'means'"
        assert re.search(wait, str(error)), error
    assert columns(outcome, "request") == [(0,)]


def test_degrade_falls_back_to_replan_where_tokens_are_needed(tmp_path: Path) -> None:
    strategies = ["single", {"name": "sequence"}, {"name": "prism", "num_segments": 2}]
    struck = 2 * WARMUP + REQUESTS + 1
    outcome = run(
        bench("degrade", *strategies),
        tmp_path,
        3,
        Fate(1, lambda what, peer, tag: (tag.request, tag.layer) == (struck, 2), kill),
    )
    assert {rank: end for rank, end in outcome.ends.items() if rank != 1} == {0: None, 2: None}
    rows = [row for row in outcome.requests if row["strategy"] == "sequence"]
    assert [row["world_size"] for row in rows] == [3, 2, 2]
    np.testing.assert_allclose([row["agreement_cosine"] for row in rows], 1.0, atol=COSINE_TOLERANCE)


def test_cut_off_rank_is_left_out_although_it_reports(tmp_path: Path) -> None:
    outcome = run(bench("replan"), tmp_path, 3, Fate(2, at(1, "means"), cut_off))
    check_survivors(outcome, 3, 2)
    assert outcome.ends[2] is None, "it stands by until the end"
    assert columns(outcome, "world_size") == [(3,), (2,), (2,)]


def test_member_that_cannot_be_reached_any_more_is_left_out_of_the_next_meeting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("astra.joining.MEETING_S", 1.0)
    fate = Fate(1, at(1, "means"), kill)
    outcome = run(bench("replan"), tmp_path, 4, fate, unreachable=lambda rank, meeting: rank == 3 and meeting == 3)
    check_survivors(outcome, 4, 1)
    assert columns(outcome, "world_size", "epoch", "attempts") == [(4, 0, 1), (2, 2, 2), (2, 2, 1)]


def test_killed_rank_joins_again_at_a_request_boundary(tmp_path: Path) -> None:
    is_split_anew = threading.Event()

    def wait(control: Control, row: Row) -> None:
        """Have rank 0 take its time over the first answer of two ranks, until the third is back."""
        until_s = time.monotonic() + BACK_WAIT_S
        if row["world_size"] == 2 and not is_split_anew.is_set():
            is_split_anew.set()
            while not control.someone_waits and time.monotonic() < until_s:
                time.sleep(0.05)

    config, fate = bench("replan", {"name": "sequence"}, requests=5), Fate(2, at(1, "slice"), kill)
    outcome = run(config, tmp_path, 3, fate, returns=lambda rank: is_split_anew.wait(BACK_WAIT_S), before_row=wait)
    assert set(outcome.ends.values()) == {None}, outcome.ends
    assert [row["request"] for row in outcome.requests] == list(range(5))
    assert columns(outcome, "world_size", "attempts") == [(3, 1), (2, 2), (3, 1), (3, 1), (3, 1)]


def test_loss_outside_of_requests_fails_at_once(tmp_path: Path) -> None:
    strategies = [{"name": "pipeline", "in_flight": 2}]
    burst = WARMUP + REQUESTS + 1
    outcome = run(bench("replan", *strategies), tmp_path, 3, Fate(2, lambda _, peer, tag: tag.request == burst, kill))
    assert all(isinstance(outcome.ends[rank], PeerLostError) for rank in (0, 1)), outcome.ends
