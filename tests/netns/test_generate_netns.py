"""Generation over real packets: exact strategies make the tokens of `single`, and the kernel counts as expected."""

from pathlib import Path

import pytest
from whole_runs import environment

from testbed.pytest_plugin import assert_metric
from testbed.pytest_plugin.runnable import RunnableScenario

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

MOST = 1.15
"""Counted over expected: more acknowledgements than one for two segments, and a word or two between the marks."""
LEAST = 1 - 66 / 330
"""All acknowledgements may ride on data; the formula has one of 66 bytes for each message of at least 330 with it."""


@pytest.mark.scenario(
    {
        "name": "texts",
        "seed": 3,
        "devices": {"count": 3, "cpus": 0.6, "memory_mb": 2000},
        "links": {"default": {"rate_mbps": 100}},
        "workload": {
            "command": ["astra", "generate"],
            "prepare": ["astra", "fit"],
            "check": ["astra", "generate", "--check"],
            "config": {
                "model": {"family": "llama", "size": "tiny", "num_tokens": 40},
                "strategies": ["single", "tensor", "sequence", "pipeline", {"name": "astra", "num_codewords": 16}],
                "generation": {"max_new_tokens": 6, "temperature": 1.2, "top_k": 100, "seed": 2},
                "partition": [3.0, 1.0, 2.0],
                "requests": 2,
                "warmup": 1,
            },
        },
    },
    calibrate=False,
)
def test_exact_strategies_over_namespaces_make_the_tokens_of_single(
    scenario: RunnableScenario, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**environment(place), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    result = scenario.run()
    for name in ("single", "tensor", "sequence", "pipeline"):
        assert_metric(result, "agreement_tokens_pct", where={"strategy": name}, equals=100.0)
    rows = {str(row["strategy"]): row for row in result.summary}
    assert all(row["time_to_first_token_s"] > 0 and row["time_per_token_s"] > 0 for row in rows.values())
    for name in ("tensor", "sequence", "pipeline"):
        for part in ("prefill", "token"):
            expected, counted = (rows[name][f"bytes_per_{part}_{how}"] for how in ("expected", "counted"))
            assert LEAST * expected <= counted <= MOST * expected, (name, part)
    assert rows["astra"]["bytes_per_token_predicted"] < 8, "the tokens themselves, and nothing else"
