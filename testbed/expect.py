"""Whether a run's summary meets the scenario's `expect`. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from testbed.scenario import Expectation

__all__ = ["Verdict", "judge"]

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Verdict:
    """One expectation against the rows that it is about."""

    met: bool
    text: str


def judge(expectations: Sequence[Expectation], rows: Sequence[Mapping[str, Value]]) -> list[Verdict]:
    """Judge each expectation: every row that `where` selects must meet its bounds, and there must be one."""
    return [_judge_one(expectation, rows) for expectation in expectations]


def _judge_one(expectation: Expectation, rows: Sequence[Mapping[str, Value]]) -> Verdict:
    where = ", ".join(f"{name}={value}" for name, value in expectation.where.items()) or "all rows"
    rule = _rule(expectation)
    chosen = [row for row in rows if all(row.get(name) == value for name, value in expectation.where.items())]
    if not chosen:
        return Verdict(False, f"{expectation.metric} ({where}) must be {rule}, got no such row in the summary")
    values = [row.get(expectation.metric) for row in chosen]
    met = all(_meets(expectation, value) for value in values)
    shown = ", ".join(f"{value:.4g}" if isinstance(value, float) else repr(value) for value in values)
    return Verdict(met, f"{expectation.metric} ({where}) must be {rule}, got {shown}")


def _rule(expectation: Expectation) -> str:
    parts = []
    if expectation.at_least is not None:
        parts.append(f"at least {expectation.at_least:g}")
    if expectation.at_most is not None:
        parts.append(f"at most {expectation.at_most:g}")
    if expectation.equals is not None:
        parts.append(f"{expectation.equals!r}")
    return " and ".join(parts)


def _meets(expectation: Expectation, value: Value) -> bool:
    if expectation.equals is not None and value != expectation.equals:
        return False
    if expectation.at_least is None and expectation.at_most is None:
        return True
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    above = expectation.at_least is None or value >= expectation.at_least
    below = expectation.at_most is None or value <= expectation.at_most
    return above and below
