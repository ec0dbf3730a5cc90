"""Predictions of a benchmark on emulated links: what ranks measure of them is what the scenario says."""

import pytest

from testbed.pytest_plugin import assert_metric
from testbed.pytest_plugin.runnable import RunnableScenario

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

RATE_MBPS = 50
MEASURED = 0.3
"""How far the ranks' own measurement of a link may be off while other work runs on the machine; the best of two."""

CHOICE = {"name": "auto", "among": ["single", {"name": "sequence", "wire": "int8"}]}
CONFIG = {"predict": True, "requests": 3, "strategies": ["single", "sequence", CHOICE]}


@pytest.mark.scenario(
    "scenarios/smoke.yaml", {f"workload.config.{key}": value for key, value in CONFIG.items()}, calibrate=False
)
def test_ranks_measure_the_links_they_have(scenario: RunnableScenario) -> None:
    result = scenario.run()
    assert_metric(result, "latency_predicted_s", at_least=1e-4)
    predictions = result.table("predictions")
    assert list(predictions["strategy"]) == ["single", "sequence", "auto"]
    (slowest_mbps,) = set(predictions["slowest_link_mbps"])
    assert slowest_mbps == pytest.approx(RATE_MBPS, rel=MEASURED)
    (chosen,) = predictions[predictions["strategy"] == "auto"]["settings"]
    assert chosen in ("-> single", "-> sequence wire=int8")
