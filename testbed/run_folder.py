"""The files of a run folder, read back.

    summary.json, manifest.json, scenario.yaml --read_object--> mapping
    <table>.csv --read_rows--> rows, every cell as text

Strict: whoever asks for a file gets what it says or an exception, and nothing is made up. Who can do without a file
(`report.folder`) catches that and keeps the reason; who cannot (`results`, `replay`) says whose folder it should be.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testbed.yaml_file import read

__all__ = ["MANIFEST_FILE", "SCENARIO_FILE", "SUMMARY_FILE", "is_finished", "read_object", "read_rows"]

SUMMARY_FILE, MANIFEST_FILE, SCENARIO_FILE = "summary.json", "manifest.json", "scenario.yaml"


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one object, in JSON or, by its name, in YAML.

    Raises OSError, ValueError if it holds something else, and InputError of `yaml_file.read`.
    """
    found = dict(read(path).tree) if path.suffix == ".yaml" else json.loads(path.read_text())
    if not isinstance(found, dict):
        raise ValueError("it holds no object")
    return found


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read a table; a cell that is not there, since the row was cut off, is empty.

    Raises OSError, and ValueError or csv.Error for what is no CSV.
    """
    with path.open(newline="") as file:
        rows = csv.DictReader(file, restval="")
        return [{name: text for name, text in row.items() if name is not None} for row in rows]


def is_finished(summary: Mapping[str, Any]) -> bool:
    """Whether a run came to its end, its expectations met or not, by its summary."""
    return summary.get("status") in ("ok", "failed") and summary.get("error") is None
