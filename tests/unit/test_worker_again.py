"""A benchmark that is asked for once more, as between the cells of a sweep: loaded once, served twice."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from transport_worlds import free_port
from worker_worlds import Notebook, served

from astra import joining, rank
from astra.config import BenchConfig, ModelConfig, SequenceConfig, SingleConfig

TIMES = 2


def test_benchmark_is_served_again_with_what_has_been_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[int, int] = {}
    loaded: list[Any] = []
    load_model = joining.load_model

    all_have_ended = threading.Barrier(2)

    def again(notebook: Notebook) -> bool:
        all_have_ended.wait()  # the controller asks when all have
        asked[id(notebook)] = asked.get(id(notebook), 0) + 1
        return asked[id(notebook)] < TIMES

    def load_and_count(config: Any) -> Any:
        loaded.append(config)
        return load_model(config)

    monkeypatch.setattr(Notebook, "again", again)
    monkeypatch.setattr(joining, "load_model", load_and_count)
    monkeypatch.setattr(rank, "SETTLE_S", 0.0)
    config = BenchConfig(
        model=ModelConfig(size="tiny", image_size=64),
        strategies=(SingleConfig(), SequenceConfig()),
        requests=2,
        warmup=1,
        timeout_s=20.0,
    )
    world = served(config, tmp_path, port=free_port())
    assert list(asked.values()) == [TIMES, TIMES]
    assert len(loaded) == 2  # once on each rank
    rows = world.notebooks[0].rows["summary"]
    assert [row["strategy"] for row in rows] == ["single", "sequence"] * TIMES
    assert [row["agreement_top1_pct"] for row in rows] == [100] * 2 * TIMES
    first, second = (
        [row["answer_digest"] for row in part]
        for part in (world.notebooks[0].rows["requests"][:4], world.notebooks[0].rows["requests"][4:])
    )
    assert first == second
    trace = json.loads((tmp_path / rank.TRACE_FILE).read_text())
    assert trace["traceEvents"]  # of the second time alone: it is a run of its own
