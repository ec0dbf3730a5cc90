"""The smoke scenario as a test, as `docs/ci.md` shows it: every strategy serves, and splitting moves what it should."""

import pytest

from testbed.pytest_plugin import assert_agreement, assert_bytes, assert_metric
from testbed.pytest_plugin.runnable import RunnableScenario

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

ASTRA_BYTES = 6_000
"""Of 448 of payload a request, keys, framing, headers and acknowledgements; counted 1,900. `sequence` takes 72,000."""


@pytest.mark.scenario("scenarios/smoke.yaml", {"workload.config.requests": 3}, calibrate=False)
def test_smoke_scenario_serves_every_strategy(scenario: RunnableScenario) -> None:
    result = scenario.run()
    assert_metric(result, "requests", equals=3)
    assert_agreement(result, "sequence", at_least_pct=100)
    assert_bytes(result, "astra", at_most=ASTRA_BYTES)
