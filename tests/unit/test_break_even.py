"""Where a curve of speed-ups crosses 1."""

import pytest

from testbed.report.break_even import Crossing, crossings, describe

ROUNDING = 1e-9
"""Of logarithms and back."""


def test_break_even_is_halfway_in_the_logarithm() -> None:
    (found,) = crossings([(10, 0.5), (1000, 1.5)])
    assert found == Crossing(pytest.approx(100, rel=ROUNDING), upwards=True)


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        ([(10, 0.5), (1000, 1.5)], "from 100 Mbps"),
        ([(1000, 0.5), (10, 1.5)], "up to 100 Mbps"),
        ([(1, 0.5), (100, 1.5), (10000, 0.5)], "from 10 to 1e+03 Mbps"),
        ([(1, 1.5), (100, 0.5), (10000, 1.5)], "up to 10 Mbps, from 1e+03 Mbps"),
        ([(10, 1.0), (20, 3.0)], "at every value measured"),
        ([(10, 0.2), (20, 0.9)], "at none measured"),
        ([(10, 0.9), (20, 1.0)], "from 20 Mbps"),
        ([(10, 2.0)], "at every value measured"),
        ([], "not measured"),
    ],
)
def test_break_even_in_words(curve: list[tuple[float, float]], said: str) -> None:
    assert describe(curve, "Mbps") == said
