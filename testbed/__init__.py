"""Isolated devices on shaped, lossy links, described by a YAML file and measured with real packets."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

__all__ = ["load_results"]


def load_results(path: Path | str) -> "pandas.DataFrame":
    """Read the results of a run, of a sweep, or a results.csv: a row for each row of a summary. Needs pandas.

    Columns say which run it was (`cell`, `run`, `folder`, ...), in what setting (as in the YAML:
    `links.default.rate_mbps`, ...) and what was measured (as in summary.csv). Raises InputError where there is nothing.
    """
    from testbed.results import load  # agents and programs import this package too, and need no pandas

    return load(path)
