"""Scenarios in pytest: a test that fails when a change makes the thing slow on a bad link.

    @pytest.mark.scenario("scenarios/smoke.yaml", {"links.default.rate_mbps": 5})
    def test_splitting_pays_on_slow_links(scenario):
        result = scenario.run()
        assert_speedup(result, "astra", at_least=2.0)

    hooks.py       options, the mark, the fixtures `scenario` and `make_scenario`; loaded by every pytest there is
    runnable.py    a scenario that can be run, by `testbed run` in a process of its own
    missing.py     why a test is skipped
    result.py      what a run folder says
    assertions.py  bounds on it, in the words of `expect`

Whatever takes time to import (pydantic, pandas, …) is imported when a test needs it. Nothing else here needs pytest.
"""

from testbed.pytest_plugin.assertions import (
    assert_agreement,
    assert_bytes,
    assert_faster,
    assert_latency,
    assert_metric,
    assert_speedup,
)
from testbed.pytest_plugin.result import RunResult

__all__ = [
    "RunResult",
    "assert_agreement",
    "assert_bytes",
    "assert_faster",
    "assert_latency",
    "assert_metric",
    "assert_speedup",
]
