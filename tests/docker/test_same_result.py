"""The same scenario in namespaces and in containers: equal codes and answers bit for bit, equal packets lost."""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from testbed.loss import Bernoulli, lost_positions

pytestmark = [pytest.mark.docker, pytest.mark.netns, pytest.mark.timeout(240)]

PROGRAM = Path(__file__).parents[1] / "netns" / "recording_rank.py"
SEED, LOSS_PCT = 5, 3
SCENARIO = {
    "name": "same",
    "seed": SEED,
    "devices": {"count": 2, "cpus": 0.8, "memory_mb": 2000},
    "links": {"default": {"rate_mbps": 50, "loss_pct": LOSS_PCT}},
    "workload": {
        "command": ["python3", "-c", PROGRAM.read_text()],
        "prepare": ["astra", "fit"],
        "config": {
            "model": {"family": "vit", "size": "tiny", "image_size": 128, "num_labels": 10},
            "input": {"images": "sample"},
            "strategies": [
                {"name": "sequence", "wire": "int8"},
                {"name": "astra", "num_groups": 2, "num_codewords": 64},
            ],
            "requests": 3,
            "warmup": 1,
        },
    },
}


@pytest.fixture
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tb-"))
    yield folder
    shutil.rmtree(folder)


def run(place: Path, runtime: str) -> Path:
    with (place / "scenario.yaml").open("w") as file:
        YAML(typ="safe").dump(SCENARIO, file)
    line = [sys.executable, "-m", "testbed", "run", "scenario.yaml", "--out", runtime, "--runtime", runtime]
    environment = {"TESTBED_STATE_DIR": str(place / "state"), "ASTRA_CACHE": str(place / "cache")}
    done = subprocess.run(
        [*line, "--no-calibrate"], cwd=place, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place / runtime


def test_namespaces_and_containers_give_the_same_codes_and_answers(place: Path) -> None:
    namespaces, containers = run(place, "netns"), run(place, "docker")
    for device in ("d0", "d1"):
        codes = [json.loads((out / "devices" / device / "codes.json").read_text()) for out in (namespaces, containers)]
        assert codes[0] == codes[1]
        assert len(codes[0]) == 4 * 4  # requests and warm-up, layers
    logits = [json.loads((out / "devices" / "d0" / "logits.json").read_text()) for out in (namespaces, containers)]
    assert logits[0] == logits[1]
    assert set(logits[0]) == {"sequence wire=int8", "astra G=2 K=64"}
    for out in (namespaces, containers):
        with (out / "links.csv").open() as file:
            for link in csv.DictReader(file):
                ends = {"source": link["source"], "destination": link["destination"]}
                lost = lost_positions(Bernoulli(LOSS_PCT / 100), seed=SEED, **ends)
                assert int(link["lost"]) == sum(position < int(link["packets"]) for position in lost)
