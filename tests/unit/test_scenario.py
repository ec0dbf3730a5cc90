"""Scenarios that are sound: reading, extending, writing back, and the JSON Schema."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from testbed.errors import InputError
from testbed.scenario import DeviceSpec, LinkSettings, Scenario, device_names, json_schema, load, parse

SHIPPED = sorted((Path(__file__).parents[2] / "scenarios").glob("*.yaml"))
SMALLEST: dict[str, Any] = {"name": "small", "devices": {"count": 2}, "workload": {"command": ["run"]}}
FULL = """
name: full-4
seed: 9223372036854775807
devices:
  {count: 4, cpus: 1, memory_mb: 64, accelerator: cuda, overrides: {d3: {cpus: null, memory_mb: 100}, d1: {cpus: .5}}}
links:
  default: {rate_mbps: 1e1, delay_ms: 2, jitter_ms: 1, loss: {model: bernoulli, loss_pct: 0.5}, queue_ms: 300}
  overrides:
    - {from: "*", to: d3, rate_mbps: null}
    - {between: [d1, d2], loss_pct: 0}
  uplink_mbps: 20
events: []
workload:
  command: [python, -m, thing, "1"]
  prepare: [make]
  check: null
  config: {answer: no, clock: 10:30, list: [1, 2.5, null, true, {deep: yes}], empty: {}}
expect:
  - {metric: speedup, where: {strategy: astra, groups: 1}, at_least: 1, at_most: 2.5}
  - {metric: agreement, equals: 100}
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def is_accepted(tree: Any) -> bool:
    return jsonschema.Draft202012Validator(json_schema()).is_valid(tree)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_scenario_loads_and_fits_the_schema(path: Path) -> None:
    assert load(path).name == path.stem
    assert is_accepted(YAML(typ="safe", pure=True).load(path.read_text()))


def test_shipped_scenarios_are_the_documented_ones() -> None:
    assert {path.stem for path in SHIPPED} >= {"quickstart", "lossless", "smoke", "terminal"}


def test_quickstart_is_four_slow_lossy_devices() -> None:
    scenario = load(SHIPPED[0].with_name("quickstart.yaml"))
    assert scenario.devices.spec("d3") == DeviceSpec(cpus=0.4, memory_mb=3000, accelerator="cpu")
    assert scenario.links.settings("d0", "d3") == LinkSettings(10.0, 0.0, 0.0, 1.0, 200.0)
    assert scenario.workload.command == ("astra", "bench")


def test_lossless_changes_only_what_it_says() -> None:
    quickstart, lossless = (load(SHIPPED[0].with_name(f"{stem}.yaml")) for stem in ("quickstart", "lossless"))
    assert lossless.links.settings("d0", "d1") == LinkSettings(10.0, 0.0, 0.0, 0.0, 200.0)
    assert lossless.devices == quickstart.devices
    assert lossless.workload.config["model"] == quickstart.workload.config["model"]
    assert len(lossless.workload.config["strategies"]) == 2


def test_scenario_defaults() -> None:
    scenario = parse(SMALLEST, "small.yaml")
    assert scenario.seed == 0
    assert scenario.devices.spec("d1") == DeviceSpec(cpus=None, memory_mb=None, accelerator="cpu")
    assert scenario.links.settings("d0", "d1") == LinkSettings(None, 0.0, 0.0, 0.0, 200.0)
    assert scenario.links.uplink_mbps is None
    assert scenario.events == scenario.expect == ()
    assert scenario.workload.prepare is scenario.workload.check is None
    assert scenario.workload.config == {}


def test_scenario_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(SMALLEST, "small.yaml").seed = 3  # type: ignore[misc]


def test_load_reads_every_key(tmp_path: Path) -> None:
    scenario = load(write(tmp_path, "full.yaml", FULL))
    assert scenario.seed == 2**63 - 1
    assert scenario.devices.spec("d0") == DeviceSpec(1.0, 64, "cuda")
    assert scenario.devices.spec("d1") == DeviceSpec(0.5, 64, "cuda")
    assert scenario.devices.spec("d3") == DeviceSpec(None, 100, "cuda")
    assert scenario.links.settings("d0", "d3") == LinkSettings(None, 2.0, 1.0, 0.5, 300.0)
    assert scenario.links.settings("d2", "d1") == LinkSettings(10.0, 2.0, 1.0, 0.0, 300.0)
    assert scenario.workload.check is None
    assert scenario.expect[0].where == {"strategy": "astra", "groups": 1}
    assert (scenario.expect[0].at_least, scenario.expect[0].at_most, scenario.expect[0].equals) == (1.0, 2.5, None)
    assert scenario.expect[1].equals == 100


def test_load_reads_yaml_by_version_1_2(tmp_path: Path) -> None:
    config = load(write(tmp_path, "full.yaml", FULL)).workload.config
    assert (config["answer"], config["clock"]) == ("no", "10:30")
    assert config["list"] == [1, 2.5, None, True, {"deep": "yes"}]


def test_spec_of_unknown_device_is_refused() -> None:
    with pytest.raises(KeyError, match="d2"):
        parse(SMALLEST, "small.yaml").devices.spec("d2")


def test_device_names_count_from_zero() -> None:
    assert device_names(3) == ("d0", "d1", "d2")


def test_extends_merges_mappings_and_replaces_lists_along_a_chain(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path / "below", "first.yaml", FULL)
    write(tmp_path / "below", "second.yaml", "extends: first.yaml\nworkload: {config: {list: [7], new: 1}}\nseed: 2")
    path = write(tmp_path, "third.yaml", "extends: below/second.yaml\nseed: 3\nlinks: {overrides: []}")
    scenario = load(path)
    assert scenario.seed == 3
    assert scenario.links.overrides == ()
    assert scenario.links.default.queue_ms == 300
    assert scenario.workload.config == {"answer": "no", "clock": "10:30", "list": [7], "empty": {}, "new": 1}


def test_extends_takes_null_over_the_base(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", FULL)
    path = write(tmp_path, "child.yaml", "extends: base.yaml\nlinks: {uplink_mbps: null}\nworkload: {prepare: null}")
    scenario = load(path)
    assert scenario.links.uplink_mbps is None
    assert scenario.workload.prepare is None


def test_extends_does_not_belong_in_a_parsed_tree() -> None:
    with pytest.raises(InputError, match="extends must be a known key"):
        parse({**SMALLEST, "extends": "x.yaml"}, "small.yaml")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_dump_of_shipped_scenario_loads_equal(tmp_path: Path, path: Path) -> None:
    scenario = load(path)
    assert load(write(tmp_path, "dumped.yaml", scenario.dump())) == scenario


def test_dump_keeps_null_that_was_given_apart_from_what_was_left_out(tmp_path: Path) -> None:
    scenario = load(write(tmp_path, "full.yaml", FULL))
    again = load(write(tmp_path, "dumped.yaml", scenario.dump()))
    assert again == scenario
    assert again.dump() == scenario.dump()
    for device in device_names(4):
        assert again.devices.spec(device) == scenario.devices.spec(device)
        for other in device_names(4):
            assert again.links.settings(other, device) == scenario.links.settings(other, device)


def test_dump_states_defaults_and_no_base(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "name: a\ndevices: {count: 2}\nworkload: {command: [run]}")
    tree = YAML(typ="safe", pure=True).load(load(write(tmp_path, "b.yaml", "extends: base.yaml")).dump())
    assert "extends" not in tree
    assert tree["seed"] == 0
    assert tree["links"]["default"]["queue_ms"] == 200


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        [
            "no",
            "1e6",
            "10:30",
            "1_000",
            "~",
            "null",
            "2024-01-01",
            "0o17",
            "",
            " a ",
            "#",
            "*",
            "é\n\t\\",
            "\x85",
            "\u2028",
        ]
    )
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abno1~ :#", max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)  # a busy machine is no fault
@given(st.dictionaries(st.sampled_from("abc"), JSON_VALUES))
def test_dump_gives_any_config_back(tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any]) -> None:
    scenario = parse({**SMALLEST, "workload": {"command": ["run"], "config": config}}, "small.yaml")
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(scenario.dump(), encoding="utf-8", newline="")
    assert load(path) == scenario
    assert json.loads(json.dumps(scenario.workload.config)) == config


def test_json_schema_is_valid_and_says_units() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    json.dumps(schema)
    links = schema["$defs"]["LinkDefault"]["properties"]
    assert "Mbit/s" in links["rate_mbps"]["description"]
    assert "milliseconds" in links["delay_ms"]["description"]


def test_json_schema_describes_every_key() -> None:
    schema = json_schema()
    for block in (schema, *schema["$defs"].values()):
        assert block["additionalProperties"] is False
        for key, value in block["properties"].items():
            target = schema["$defs"].get(value.get("$ref", "").removeprefix("#/$defs/"), {})
            assert value.get("description") or target.get("description"), key


@pytest.mark.parametrize(
    "change",
    [
        {"bogus": 1},
        {"devices": {"count": 2, "bogus": 1}},
        {"devices": {"count": 2, "overrides": {"first": {}}}},
        {"devices": {"count": 0}},
        {"devices": {}},
        {"links": {"default": {"bandwidth": 1}}},
        {"links": {"default": {"rate_mbps": "10"}}},
        {"links": {"default": {"delay_ms": None}}},
        {"links": {"overrides": [{"from": "d0", "rate_mbps": 1}]}},
        {"links": {"overrides": [{"from": "d0", "to": "d1", "bogus": 1}]}},
        {"events": [{"at_s": 1}]},
        {"workload": {"command": []}},
        {"workload": {}},
        {"expect": [{"metric": "latency_s"}]},
    ],
)
def test_json_schema_rejects(change: dict[str, Any]) -> None:
    assert is_accepted(SMALLEST)
    assert not is_accepted(SMALLEST | change)


def test_json_schema_lets_an_extending_file_leave_out_anything() -> None:
    assert is_accepted({"extends": "base.yaml"})
    assert is_accepted({"extends": "base.yaml", "devices": {"cpus": 1}, "workload": {"config": {}}})
    assert not is_accepted({})


def test_json_schema_accepts_what_load_accepts() -> None:
    tree = YAML(typ="safe", pure=True).load(FULL)
    assert isinstance(parse(tree, "full.yaml"), Scenario)
    assert is_accepted(tree)
