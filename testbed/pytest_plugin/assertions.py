"""Bounds on what a run measured, judged and worded as `expect` in a scenario is.

`where` chooses rows of the summary by other columns, such as `{"settings": "G=1"}`; every row chosen has to meet the
bounds, and there must be one. Raises AssertionError, which names what was measured and the run's folder.
"""

from collections.abc import Mapping
from typing import Any

from testbed.pytest_plugin.result import RunResult

__all__ = ["assert_agreement", "assert_bytes", "assert_faster", "assert_latency", "assert_metric", "assert_speedup"]

Scalar = str | int | float | bool
Where = Mapping[str, Scalar] | None


def assert_metric(
    result: RunResult,
    metric: str,
    *,
    where: Where = None,
    at_least: float | None = None,
    at_most: float | None = None,
    equals: Scalar | None = None,
) -> None:
    """Hold a column of the summary against bounds, of which at least one is given."""
    __tracebackhide__ = True
    from testbed.expect import judge  # pydantic takes a while: see the package
    from testbed.scenario import Expectation

    bounds: dict[str, Any] = {"at_least": at_least, "at_most": at_most, "equals": equals}
    given = {name: value for name, value in bounds.items() if value is not None}
    (verdict,) = judge([Expectation(metric=metric, where=dict(where or {}), **given)], result.summary)
    if not verdict.met:
        raise AssertionError(f"{verdict.text}\n{result.folder}")


def assert_speedup(result: RunResult, strategy: str, *, at_least: float, where: Where = None) -> None:
    """Demand that a strategy is so many times as fast as one device alone, in the same run."""
    __tracebackhide__ = True
    assert_metric(result, "speedup_vs_single", where=_of(strategy, where), at_least=at_least)


def assert_latency(
    result: RunResult, strategy: str, *, at_most_s: float, percentile: int = 50, where: Where = None
) -> None:
    """Demand a latency in seconds; `percentile` is 50, 95 or 99."""
    __tracebackhide__ = True
    assert_metric(result, f"latency_p{percentile}_s", where=_of(strategy, where), at_most=at_most_s)


def assert_bytes(result: RunResult, strategy: str, *, at_most: float, where: Where = None) -> None:
    """Demand that the kernel counted no more bytes a request, over all links and with all protocol overhead."""
    __tracebackhide__ = True
    assert_metric(result, "bytes_per_request_counted", where=_of(strategy, where), at_most=at_most)


def assert_agreement(result: RunResult, strategy: str, *, at_least_pct: float, where: Where = None) -> None:
    """Demand that so many per cent of the answers are those of one device alone."""
    __tracebackhide__ = True
    assert_metric(result, "agreement_top1_pct", where=_of(strategy, where), at_least=at_least_pct)


def assert_faster(result: RunResult, strategy: str, *, than: str, by: float = 1.0, where: Where = None) -> None:
    """Demand that a strategy is `by` times as fast at the median as the fastest row of another, in the same run.

    `where` chooses rows of the first.
    """
    __tracebackhide__ = True
    measured = [row.get("latency_p50_s") for row in result.summary if row.get("strategy") == than]
    seconds = [value for value in measured if isinstance(value, int | float)]
    if not seconds:
        known = ", ".join(sorted({str(row.get("strategy")) for row in result.summary})) or "none"
        raise AssertionError(f"than: must be a strategy of the run, got {than!r}; known here: {known}\n{result.folder}")
    assert_metric(result, "latency_p50_s", where=_of(strategy, where), at_most=min(seconds) / by)


def _of(strategy: str, where: Where) -> dict[str, Scalar]:
    return {"strategy": strategy, **(where or {})}
