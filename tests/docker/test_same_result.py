"""The quickstart's devices, links and strategies in namespaces and in containers: equal answers, equal packets lost."""

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from whole_runs import cli, table

from testbed.loss import Bernoulli, lost_positions

pytestmark = [pytest.mark.docker, pytest.mark.netns, pytest.mark.timeout(1900)]

TESTS = Path(__file__).parents[1]
PROGRAM = TESTS / "netns" / "recording_rank.py"
QUICKSTART = TESTS.parent / "scenarios" / "quickstart.yaml"
MODEL = {"family": "vit", "size": "tiny", "image_size": 512}
"""As many tokens as the quickstart's, in the smallest model."""
NUM_CODEWORDS = 64
"""The quickstart's 1,024 take too long to fit for a test."""
REQUESTS, WARMUP = 2, 1


@pytest.fixture
def scenario() -> dict[str, Any]:
    """The quickstart with a small model, and a program that also keeps what it sends and answers."""
    found: dict[str, Any] = YAML(typ="safe").load(QUICKSTART)
    del found["expect"]
    found["workload"]["command"] = ["python3", "-c", PROGRAM.read_text()]
    config = found["workload"]["config"]
    config |= {"model": MODEL, "requests": REQUESTS, "warmup": WARMUP}
    config["strategies"][-1]["num_codewords"] = NUM_CODEWORDS
    return found


def run(place: Path, runtime: str) -> Path:
    arguments = ("run", "scenario.yaml", "--out", runtime, "--runtime", runtime, "--no-calibrate")
    done = cli(place, *arguments, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return place / runtime


def both(outs: tuple[Path, Path], device: str, name: str) -> tuple[Any, Any]:
    first, second = (json.loads((out / "devices" / device / f"{name}.json").read_text()) for out in outs)
    return first, second


def test_quickstart_gives_the_same_codes_answers_and_losses(place: Path, scenario: dict[str, Any]) -> None:
    with (place / "scenario.yaml").open("w") as file:
        YAML(typ="safe").dump(scenario, file)
    outs = run(place, "netns"), run(place, "docker")
    num_devices, seed = scenario["devices"]["count"], scenario["seed"]
    for rank in range(num_devices):
        first, second = both(outs, f"d{rank}", "codes")
        assert first == second
        layers = {layer for _, layer, *_ in first}
        assert len(first) >= (REQUESTS + WARMUP) * len(layers) * (num_devices - 1)  # more, to measure the throughput
    first, second = both(outs, "d0", "logits")
    assert first == second
    assert len(first) == len(scenario["workload"]["config"]["strategies"])
    for out in outs:
        links = table(out, "links")
        assert len(links) == num_devices * (num_devices - 1)
        for link in links:
            ends = {"source": link["source"], "destination": link["destination"]}
            lost = lost_positions(Bernoulli(scenario["links"]["default"]["loss_pct"] / 100), seed=seed, **ends)
            assert int(link["lost"]) == sum(position < int(link["packets"]) for position in lost)
