"""Ranks as real processes whose rows are datagrams on loopback: a whole run, and a config that is wrong."""

import csv
import json
from pathlib import Path

import pytest
from test_worker_processes import NUM_LAYERS, WIDTH, started

from astra.config_file import parse_config
from astra.errors import ConfigError

DATAGRAM = {"name": "datagram", "slack_ms": 500, "copies": 2}
"""Slack for a busy machine: nothing is lost on loopback."""
SEGMENTS, RANKS = 2, 2
LONG_WAIT_S = 110
"""Nearly as long as a test may take: processes import torch first, on a machine that may be busy."""


def test_worker_processes_send_means_as_datagrams(tmp_path: Path) -> None:
    prism = {"name": "prism", "num_segments": SEGMENTS}
    config = {"strategies": [prism, {**prism, "transport": DATAGRAM}], "requests": 2, "warmup": 1}
    with started(RANKS, config, tmp_path) as ranks:
        errors = [process.communicate(timeout=LONG_WAIT_S)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * RANKS, errors
    with (tmp_path / "out" / "summary.csv").open(newline="") as file:
        reliable, datagram = csv.DictReader(file)
    assert reliable["missing_tokens_pct"] == ""
    assert float(datagram["missing_tokens_pct"]) == 0.0
    links = RANKS * (RANKS - 1)
    assert int(reliable["bytes_per_request_predicted"]) == links * NUM_LAYERS * SEGMENTS * WIDTH * 4
    assert int(datagram["bytes_per_request_predicted"]) == 2 * int(reliable["bytes_per_request_predicted"])
    with (tmp_path / "out" / "requests.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if "datagram" in row["settings"]]
    assert len(rows) == 2
    for row in rows:
        calls = 2 * (RANKS - 1)  # rank 0's word that the request has begun
        assert int(row["datagrams_sent"]) == 2 * links * NUM_LAYERS + calls
        assert float(row["wait_s"]) < float(row["latency_s"])


def config_with(transport: object, strategy: str = "astra") -> str:
    return json.dumps(
        {"model": {"size": "tiny", "image_size": 64}, "strategies": [{"name": strategy, "transport": transport}]}
    )


@pytest.mark.parametrize(
    "transport", ["reliable", "datagram", {"name": "datagram", "copies": 3, "parity": True}], ids=str
)
def test_transport_may_be_a_name_or_a_mapping(transport: object) -> None:
    (strategy,) = parse_config(config_with(transport), where="bench.json").strategies
    name = transport if isinstance(transport, str) else transport["name"]  # type: ignore[index]
    assert strategy.transport.name == name  # type: ignore[union-attr]


def test_transport_tells_strategies_apart() -> None:
    texts = ["reliable", "datagram", {"name": "datagram", "deadline_ms": 5, "on_missing": "stale"}]
    shown = [parse_config(config_with(text), where="x").strategies[0].settings for text in texts]
    assert shown == ["G=1", "G=1 datagram", "G=1 datagram deadline=5 stale"]


def test_transport_reports_every_fault() -> None:
    wrong = {"name": "datagram", "copies": 0, "on_missing": "masked", "deadlin_ms": 5}
    with pytest.raises(ConfigError) as caught:
        parse_config(config_with(wrong), where="bench.json")
    assert caught.value.faults == (
        "bench.json: strategies[0].transport.on_missing must be one of mask, stale, got 'masked'; did you mean 'mask'?",
        "bench.json: strategies[0].transport.copies must be at least 1, got 0; give a larger number",
        "bench.json: strategies[0].transport must be a mapping without unknown keys, got 'deadlin_ms'; "
        "did you mean 'deadline_ms'?",
    )


@pytest.mark.parametrize(
    ("transport", "fault"),
    [
        ("datagrams", "strategies[0].transport.name must be one of reliable, datagram, got 'datagrams'; did you mean"),
        (
            {"name": "datagram", "deadline_ms": 0},
            "strategies[0].transport.deadline_ms must be greater than 0.0, got 0;",
        ),
        ({"name": "datagram", "deadline_ms": 5, "slack_ms": 5}, "must be given either deadline_ms or slack_ms, got"),
        (
            {"name": "reliable", "copies": 2},
            "strategies[0].transport must be a mapping without unknown keys, got 'copies'",
        ),
    ],
    ids=str,
)
def test_transport_says_what_is_wrong(transport: object, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(config_with(transport), where="bench.json")
    assert len(caught.value.faults) == 1
    assert fault in caught.value.faults[0]


def test_only_strategies_with_rows_of_tokens_have_a_transport() -> None:
    with pytest.raises(ConfigError, match="must be a mapping without unknown keys, got 'transport'"):
        parse_config(config_with("datagram", strategy="sequence"), where="bench.json")
