"""The JSON Schema of sweep files: what editors accept and refuse."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from testbed.cli import app

SHIPPED = sorted((Path(__file__).parents[2] / "scenarios" / "sweeps").glob("*.yaml"))
SWEEPS = [path for path in SHIPPED if path.stem != "small"]
SMALLEST = {"name": "s", "base": "base.yaml", "matrix": {"seed": [1, 2]}}


def written_schema() -> dict[str, Any]:
    result = CliRunner().invoke(app, ["sweep", "schema"], catch_exceptions=False)
    schema: dict[str, Any] = json.loads(result.output)
    return schema


def is_accepted(tree: Any) -> bool:
    return jsonschema.Draft202012Validator(written_schema()).is_valid(tree)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_shipped_sweep_fits_the_schema(path: Path) -> None:
    assert is_accepted(YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")))


def test_schema_is_valid_and_describes_every_key() -> None:
    schema = written_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert all(value.get("description") for value in schema["properties"].values())
    assert "Mbit/s" in schema["$defs"]["LinkDefault"]["properties"]["rate_mbps"]["description"]


@pytest.mark.parametrize(
    "change",
    [
        {"bogus": 1},
        {"name": "a/b"},
        {"matrix": {"links..rate": [1]}},
        {"matrix": {"seed": []}},
        {"matrix": {"seed": 1}},
        {"zip": [{"a b": [1]}]},
        {"exclude": [{"": 1}]},
        {"set": {"link": {}}},
        {"set": {"name": "t"}},
        {"set": {"links": {"default": {"bandwidth": 1}}}},
        {"set": {"workload": {"command": []}}},
        {"cell_s": 0},
    ],
)
def test_schema_rejects(change: dict[str, Any]) -> None:
    assert is_accepted(SMALLEST)
    assert not is_accepted(SMALLEST | change)


def test_schema_wants_an_axis_unless_the_file_extends_another() -> None:
    assert not is_accepted({"name": "s", "base": "base.yaml"})
    assert is_accepted({"name": "s", "base": "base.yaml", "zip": [{"seed": [1], "devices.cpus": [0.5]}]})
    assert is_accepted({"extends": "other.yaml", "matrix": {"seed": [3]}})


def test_schema_lets_set_say_as_little_as_it_likes() -> None:
    assert is_accepted(SMALLEST | {"set": {"devices": {"cpus": 0.5}, "workload": {"config": {"requests": 3}}}})
