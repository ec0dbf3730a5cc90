"""Strategies over real packets: exact where they claim to be, and the same as in one process."""

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording_rank import record
from whole_runs import environment

from astra.config_file import load_config
from astra.environment import Environment
from astra.reporting import FileReporter
from astra.transport import inproc
from testbed.pytest_plugin import RunResult
from testbed.pytest_plugin.runnable import RunnableScenario

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

EXACT = 1e-4
"""Relative; fp32 sums in another order. Measured 1e-6 on the tiny model."""
SAME = 1e-5
"""Between two transports: equal codes and arithmetic, but peers' rows may arrive in another order."""
FRAMING = 0.10
"""Of the bytes that payload, framing and headers should take; acknowledgements may ride on data or not."""
REQUESTS = 2


Bench = Callable[[list[float], list[Any]], RunResult]


@pytest.fixture
def bench(place: Path, monkeypatch: pytest.MonkeyPatch, make_scenario: Callable[..., RunnableScenario]) -> Bench:
    """A function that runs a benchmark of the tiny model on one device a weight."""
    for name, value in {**environment(place), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)

    def go(weights: list[float], strategies: list[Any]) -> RunResult:
        config = {
            "model": {"family": "vit", "size": "tiny", "image_size": 128, "num_labels": 10},
            "input": {"images": "sample"},
            "strategies": strategies,
            "partition": weights,
            "requests": REQUESTS,
            "warmup": 1,
        }
        workload = {
            "command": [sys.executable, str(Path(__file__).parent / "recording_rank.py")],
            "prepare": ["astra", "fit"],
            "config": config,
        }
        (place / "config.json").write_text(json.dumps(config))
        tree = {
            "name": "exact",
            "seed": 3,
            "devices": {"count": len(weights), "cpus": 1.0, "memory_mb": 2000},
            "links": {"default": {"rate_mbps": 100}},
            "workload": workload,
        }
        return make_scenario(tree, calibrate=False, go_on=True).run()

    return go


def logits_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in json.loads((folder / "logits.json").read_text()).items()}


@pytest.mark.parametrize("weights", [[1.0], [3.0, 1.0], [1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0]], ids=str)
def test_exact_strategies_over_namespaces_equal_single(bench: Bench, weights: list[float]) -> None:
    exact = ["tensor", "sequence", "pipeline", "galaxy"]
    result = bench(weights, ["single", *exact])
    logits = logits_of(result.folder / "devices" / "d0")
    single = logits["single"]
    for name in exact:
        row = result.row(strategy=name)
        assert np.abs(logits[f"{name} wire=fp32"] - single).max() <= EXACT * np.abs(single).max()
        if len(weights) > 1:
            expected, counted = row["bytes_per_request_expected"], row["bytes_per_request_counted"]
            assert counted == pytest.approx(expected, rel=FRAMING)
            assert row["bytes_per_request_predicted"] < counted


def test_astra_over_namespaces_equals_astra_in_process(place: Path, bench: Bench) -> None:
    weights = [2.0, 1.0, 1.0]
    result = bench(weights, [{"name": "astra", "num_groups": 2, "num_codewords": 64}])
    config = load_config(place / "config.json")
    transports = inproc.connect(len(weights))
    threads = [
        threading.Thread(
            target=record,
            args=(
                config,
                Environment(rank, len(weights), "127.0.0.1", 1, place / "inproc" / f"d{rank}", num_threads=1),
                FileReporter(place / "inproc" / f"d{rank}", lambda line: None),
                lambda rank, *where: transports[rank],
            ),
        )
        for rank in range(len(weights))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank in range(len(weights)):
        over_packets = json.loads((result.folder / "devices" / f"d{rank}" / "codes.json").read_text())
        in_process = json.loads((place / "inproc" / f"d{rank}" / "codes.json").read_text())
        assert over_packets == in_process
        assert len(in_process) == (REQUESTS + 1) * 4 * 2  # requests and warm-up, layers, peers: nothing was left out
    ours, theirs = logits_of(result.folder / "devices" / "d0"), logits_of(place / "inproc" / "d0")
    for name, expected in theirs.items():
        assert np.abs(ours[name] - expected).max() <= SAME * np.abs(expected).max()
