"""`astra plan` and `astra probe`: scenarios of this project and others, without running anything."""

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from astra.cli import app
from astra.errors import ConfigError
from astra.planning.links import LinkSpeed
from astra.planning.scenario import read_scenario
from astra.planning.speed import REFERENCE, Speed

ROOT = Path(__file__).parents[2]
METHODS = ROOT / "scenarios" / "methods.yaml"
LARGE = """
devices: {count: 1000, cpus: 4}
links: {default: {rate_mbps: 100, delay_ms: 1}}
workload:
  command: [astra, bench]
  config:
    model: {family: llama, size: llama-3-8b, num_tokens: 2048}
    strategies: [single, {name: tensor}, {name: sequence, wire: int8}, {name: astra, num_groups: 16}]
"""
LIMIT_S, LIMIT_BYTES = 10.0, 200e6
"""CPU time and memory in which 1,000 devices are planned with; measured 4 s and 91 MB."""
UNEVEN = """
extends: base.yaml
devices: {overrides: {d2: {cpus: 0.2}}}
links:
  overrides:
    - {from: d0, to: "*", rate_mbps: 5}
    - {between: [d0, d2], loss: {model: gilbert_elliott, enter_pct: 1, leave_pct: 4, bad_loss_pct: 50}}
  uplink_mbps: 20
"""
BASE = """
devices: {count: 3, cpus: 0.4}
links: {default: {rate_mbps: 10, loss_pct: 1}}
workload: {config: {model: {size: tiny, image_size: 128}, strategies: [single, sequence]}}
"""


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def planned(*arguments: object) -> list[dict[str, Any]]:
    result = run("plan", *arguments, "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["strategies"]
    return found


def test_plan_predicts_the_strategies_of_a_shipped_scenario() -> None:
    rows = planned(METHODS, "--gflops", 73)
    assert [row["strategy"] for row in rows][:3] == ["single", "tensor", "tensor"]
    assert len(rows) == 12
    assert rows[0]["speedup_predicted"] == 1.0
    assert sum(row["fastest"] for row in rows) == 1
    assert rows[1]["latency_predicted_s"] > rows[0]["latency_predicted_s"] > rows[-1]["latency_predicted_s"]


def test_readme_command_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = "astra plan scenarios/methods.yaml"
    result = run(*command.split()[1:])
    assert result.exit_code == 0, result.output
    assert "GFLOP/s a core" in result.stdout


def test_plan_prints_a_table_and_the_choice() -> None:
    result = run("plan", METHODS, "--gflops", 73)
    assert result.exit_code == 0, result.output
    assert "vit base, 1024 tokens, 4 devices (0.4 CPU), 73 GFLOP/s a core, 10 Mbps a link" in result.stdout
    assert "over single" in result.stdout
    assert "fastest: " in result.stdout


def test_plan_needs_no_model_or_devices_of_that_size(tmp_path: Path) -> None:
    scenario = tmp_path / "large.yaml"
    scenario.write_text(LARGE)
    single, tensor, sequence, astra = planned(scenario, "--gflops", 50)
    assert "world size must divide the model's 32 heads, got 1000" in tensor["obstacle"]
    assert astra["latency_predicted_s"] < sequence["latency_predicted_s"] < single["latency_predicted_s"]
    result = run("plan", scenario, "--gflops", 50)
    assert "tensor wire=fp32: world size must divide" in " ".join(result.stdout.split())


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Write a scenario of 1,000 devices, some of whose links differ from the rest."""
    own = '{overrides: [{from: d0, to: "*", rate_mbps: 50}, {from: "*", to: d7, loss_pct: 1}], default'
    path = tmp_path / "large.yaml"
    path.write_text(LARGE.replace("{default", own))
    return path


def test_a_thousand_devices_with_links_of_their_own_are_planned_in_seconds(large: Path) -> None:
    begin_s = time.process_time()
    *_, sequence, astra = planned(large, "--gflops", 50)
    assert time.process_time() - begin_s < LIMIT_S
    assert 0 < astra["latency_predicted_s"] < sequence["latency_predicted_s"]


def test_a_thousand_devices_are_planned_in_little_memory(large: Path) -> None:
    large.write_text(large.read_text().replace("single, {name: tensor}, {name: sequence, wire: int8}, ", ""))
    tracemalloc.start()
    try:
        planned(large, "--gflops", 50)
        assert tracemalloc.get_traced_memory()[1] < LIMIT_BYTES
    finally:
        tracemalloc.stop()


def test_plan_takes_a_speed_that_was_measured_elsewhere(tmp_path: Path) -> None:
    speed = tmp_path / "speed.json"
    REFERENCE.scaled(10).write(speed)
    slow, fast = (planned(METHODS, *how)[0] for how in (("--speed", speed), ("--gflops", 20)))
    assert slow["latency_predicted_s"] == pytest.approx(2 * fast["latency_predicted_s"], rel=0.01)  # but for quotas


def test_probe_writes_what_plan_reads(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    out = tmp_path / "speed.json"
    result = run("probe", tmp_path / "base.yaml", "--out", out)
    assert result.exit_code == 0, result.output
    assert "GFLOP/s a core" in result.stdout
    assert Speed.read(out).gflops > 0
    assert planned(tmp_path / "base.yaml", "--speed", out)[0]["latency_predicted_s"] > 0
    assert planned(tmp_path / "base.yaml")[0]["latency_predicted_s"] > 0  # measured by itself


def test_scenario_gives_devices_and_links(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "uneven.yaml").write_text(UNEVEN)
    setting = read_scenario(tmp_path / "uneven.yaml")
    assert setting.cpus == (0.4, 0.4, 0.2)
    assert setting.links.uplink_bps == 20e6
    assert setting.links.between(1, 2) == LinkSpeed(10e6, 0.0, 0.01)
    assert setting.links.between(0, 1) == LinkSpeed(5e6, 0.0, 0.01)
    assert setting.links.between(2, 0) == LinkSpeed(10e6, 0.0, pytest.approx(0.1))
    assert setting.links.between(0, 2) == LinkSpeed(5e6, 0.0, pytest.approx(0.1))


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_scenarios_can_be_planned(path: Path) -> None:
    setting = read_scenario(path)
    assert len(setting.cpus) >= 2
    assert setting.links.default.rate_bps < float("inf")


@pytest.mark.parametrize("gflops", [0, -1, "nan", "inf"])
def test_plan_refuses_speeds_that_are_none(gflops: object) -> None:
    result = run("plan", METHODS, "--gflops", gflops)
    assert result.exit_code == 2
    assert "astra plan: --gflops must be a finite number greater than 0, got" in result.output


def test_plan_faults(tmp_path: Path) -> None:
    both = run("plan", METHODS, "--gflops", 50, "--speed", tmp_path / "none.json")
    assert both.exit_code == 2
    assert "--gflops must be left out where --speed is given" in both.output
    missing = run("plan", METHODS, "--speed", tmp_path / "none.json")
    assert missing.exit_code == 2
    assert "the file must be readable text" in missing.output
    wrong = tmp_path / "wrong.json"
    for times in ({"dense": 1.0}, {**REFERENCE.seconds_per, "dense": 0.0}, {**REFERENCE.seconds_per, "calls": -1.0}):
        wrong.write_text(json.dumps({"seconds_per": times}))
        result = run("plan", METHODS, "--speed", wrong)
        assert result.exit_code == 2
        assert "`astra probe --out` writes such a file" in result.output


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("devices: {count: 0}\nworkload: {config: {strategies: []}}", "devices.count must be at least 1, got 0"),
        ("devices: {count: 2}\nworkload: {config: {}}", "must be a scenario of `astra bench`"),
        ("extends: own.yaml", "extends must be a file that does not lead back here"),
        (BASE.replace("tiny", "huge"), "workload.config: model.size must be one of"),
        (BASE.replace("loss_pct: 1", "loss_pct: 100"), "links.default must be a link that loses less than 100 %"),
        (
            UNEVEN.replace("extends: base.yaml\n", "").replace("{overrides", "{count: 2, overrides")
            + "workload: {config: {}}",
            "own.yaml: the file must be a scenario whose overrides name its devices, d0 to d1, and not d2",
        ),
        (
            BASE.replace("loss_pct: 1}", "loss_pct: 1}, overrides: [{from: d0, rate_mbps: 1}]"),
            "links.overrides\\[0\\] must be a mapping with `between`, or with `from` and `to`",
        ),
        (
            BASE.replace("loss_pct: 1}", "loss_pct: 1}, overrides: [{between: [d0, '*'], rate_mbps: 1}]"),
            "a scenario whose overrides name its devices, d0 to d2, and not \\*",
        ),
        (
            BASE.replace("loss_pct: 1}", "loss: {model: gilbert, enter_pct: 1}}"),
            "links.default.loss.model must be one of bernoulli, gilbert_elliott, recorded, got 'gilbert'",
        ),
        (
            BASE.replace("loss_pct: 1}", "loss: {model: bernoulli, loss_pct: -5}}"),
            "links.default.loss.loss_pct must be at least 0.0, got -5",
        ),
        (BASE + "? [a, b]\n: c\n", "own.yaml: keys must be text, got others"),
    ],
)
def test_scenario_faults(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=fault):
        read_scenario(path)
