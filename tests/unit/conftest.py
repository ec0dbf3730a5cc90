"""Surroundings of unit tests: one thread of arithmetic, here and in whatever a test starts; the longest come first.

Models here are so small that more threads only wait for one another; with a test a core they would do so for minutes.
"""

import os

import pytest

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"  # read when torch and numpy are imported, which is later


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what trains, so that no core is left alone with it in the end."""
    items.sort(key=lambda item: item.get_closest_marker("training") is None)
