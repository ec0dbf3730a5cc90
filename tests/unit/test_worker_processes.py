"""Ranks as real processes over ZeroMQ on loopback: a whole run, and a rank that dies in the middle."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from loopback import free_port

from astra.rank import TRACE_FILE

COSINE_TOLERANCE = 1e-6
"""fp32 sums in another order; measured 1e-13 on the tiny model."""
NUM_TOKENS, WIDTH, NUM_LAYERS = 16, 64, 4
"""The tiny model at 64 pixels."""
START_SKEW_S = 4.0
"""How far apart two processes may finish their imports on a busy machine: also how long they wait for each other."""
EXIT_WAIT_S = 60
"""Far above the runs' own deadlines; only a hang gets here."""


@contextmanager
def started(world_size: int, config: dict[str, Any], folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Start one `astra bench` per rank; whatever is left at the end is killed."""
    path = folder / "bench.json"
    path.write_text(json.dumps({"model": {"size": "tiny", "image_size": 64}} | config))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TESTBED_")}
    shared = {
        **inherited,
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "TESTBED_CONFIG": str(path),
        "TESTBED_OUT": str(folder / "out"),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "astra", "bench"],
            env=shared | {"RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]
    try:
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


def test_worker_processes_write_tables_and_trace(tmp_path: Path):
    config = {"strategies": ["single", "sequence"], "requests": 2, "warmup": 1}
    with started(2, config, tmp_path) as ranks:
        errors = [process.communicate(timeout=EXIT_WAIT_S)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        single, sequence = csv.DictReader(file)
    assert float(sequence["agreement_cosine"]) == pytest.approx(1.0, abs=COSINE_TOLERANCE)
    assert float(single["speedup_vs_single"]) == 1.0
    rows_sent = NUM_TOKENS + 1  # every row, the class token's too, goes to the one other rank
    assert int(sequence["bytes_per_request_predicted"]) == NUM_LAYERS * rows_sent * WIDTH * 4
    with (tmp_path / "out" / "requests.csv").open(newline="") as file:
        assert [row["request"] for row in csv.DictReader(file)] == ["0", "1", "0", "1"]
    assert json.loads((tmp_path / "out" / TRACE_FILE).read_text())["traceEvents"]


def test_worker_processes_end_when_their_peer_dies(tmp_path: Path):
    config = {"strategies": ["sequence"], "requests": 100_000, "warmup": 0, "timeout_s": START_SKEW_S}
    with started(2, config, tmp_path) as (survivor, victim):
        assert survivor.stderr is not None
        line = survivor.stderr.readline()
        while line and "3/100000" not in line:
            line = survivor.stderr.readline()
        assert line, "rank 0 ended before its third request"
        victim.send_signal(signal.SIGKILL)
        error = survivor.communicate(timeout=EXIT_WAIT_S)[1].strip().splitlines()[-1]
    assert (survivor.returncode, victim.returncode) == (1, -signal.SIGKILL)
    assert error.startswith("rank 0, sequence wire=fp32, request "), error
    assert "rank 1" in error
    assert "phase" in error
