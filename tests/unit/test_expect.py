"""Expectations against summary rows."""

from typing import Any

import pytest

from testbed.expect import judge
from testbed.scenario import Expectation

ROWS: list[dict[str, Any]] = [
    {"strategy": "astra", "settings": "G=1", "speedup_vs_single": 2.5},
    {"strategy": "astra", "settings": "G=16", "speedup_vs_single": 1.2},
    {"strategy": "single", "settings": "", "speedup_vs_single": None},
]


@pytest.mark.parametrize(
    ("expectation", "met"),
    [
        ({"where": {"strategy": "astra", "settings": "G=1"}, "at_least": 2.5}, True),
        ({"where": {"strategy": "astra", "settings": "G=1"}, "at_least": 2.6}, False),
        ({"where": {"strategy": "astra"}, "at_least": 2.0}, False),
        ({"where": {"strategy": "astra"}, "at_least": 1.0, "at_most": 3.0}, True),
        ({"where": {"strategy": "astra"}, "at_most": 2.0}, False),
        ({"where": {"strategy": "single"}, "at_least": 0.0}, False),
        ({"where": {"strategy": "tensor"}, "at_least": 0.0}, False),
        ({"where": {"settings": "G=16"}, "equals": 1.2}, True),
        ({"where": {"settings": "G=16"}, "equals": 1.3}, False),
    ],
)
def test_expectation_is_judged_on_every_selected_row(expectation: dict[str, Any], met: bool) -> None:
    chosen = Expectation.model_validate({"metric": "speedup_vs_single", **expectation})
    assert [verdict.met for verdict in judge([chosen], ROWS)] == [met]


def test_verdict_says_rule_and_values() -> None:
    chosen = Expectation.model_validate({"metric": "speedup_vs_single", "where": {"strategy": "astra"}, "at_least": 2})
    assert judge([chosen], ROWS)[0].text == "speedup_vs_single (strategy=astra) must be at least 2, got 2.5, 1.2"


def test_verdict_says_that_no_row_was_selected() -> None:
    chosen = Expectation.model_validate({"metric": "x", "where": {"strategy": "prism"}, "at_least": 2})
    assert judge([chosen], ROWS)[0].text == "x (strategy=prism) must be at least 2, got no such row in the summary"
