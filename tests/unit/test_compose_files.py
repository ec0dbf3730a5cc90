"""The Compose files say what the engine's runtime does, and `testbed render` makes one for any scenario."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from testbed.errors import InputError
from testbed.render import compose_file
from testbed.runtimes.container import (
    AGENT_FOLDER,
    AGENT_KEYS,
    CAPABILITIES,
    CONTROL_PORT,
    KEYS_FOLDER,
    SECURITY_OPTIONS,
    TMPFS,
    image_name,
)
from testbed.scenario import Scenario, load, parse

ROOT = Path(__file__).parents[2]


def read(text: str) -> dict[str, Any]:
    tree: dict[str, Any] = YAML(typ="safe").load(text)
    return tree


def scenario(**changes: Any) -> Scenario:
    plain: dict[str, Any] = {
        "name": "Two.Unequal",
        "seed": 1,
        "devices": {"count": 2, "cpus": 0.4, "memory_mb": 500},
        "workload": {"command": ["sh", "-c", "echo $RANK"]},
        **changes,
    }
    return parse(plain, "test")


def test_shipped_file_makes_devices_as_the_docker_runtime_does() -> None:
    device = read((ROOT / "docker-compose.yml").read_text())["services"]["device"]
    assert device["cap_drop"] == ["ALL"]
    assert tuple(device["cap_add"]) == CAPABILITIES
    assert tuple(device["security_opt"]) == SECURITY_OPTIONS
    assert device["read_only"] is True
    assert device["tmpfs"] == [f"{place}:{options}" for place, options in TMPFS.items()]
    where = ["--endpoint", f"tcp://controller:{CONTROL_PORT}", "--folder", AGENT_FOLDER]
    assert device["command"] == [*where, "--keys", AGENT_KEYS]
    assert device["cpu_period"] == 10_000


def test_programs_of_containers_cannot_write_keys_or_read_the_controllers() -> None:
    services = read((ROOT / "docker-compose.yml").read_text())["services"]
    assert f"keys:{KEYS_FOLDER}:ro" in services["device"]["volumes"]
    assert f"keys:{KEYS_FOLDER}" in services["controller"]["volumes"]
    stack = read((ROOT / "images" / "stack.yml").read_text())["services"]
    assert [secret["source"] for secret in stack["device"]["secrets"]] == ["agent"]
    assert all(secret["mode"] == 400 for service in stack.values() for secret in service["secrets"])  # octal in Compose


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker-compose.gpu.yml"])
def test_shipped_files_give_no_container_the_engine_or_all_privileges(name: str) -> None:
    for service in read((ROOT / name).read_text())["services"].values():
        assert "privileged" not in service
        assert not any("docker.sock" in volume for volume in service.get("volumes", ()))


def test_shipped_file_defaults_fit_the_quickstart() -> None:
    devices = load(ROOT / "scenarios" / "quickstart.yaml").devices
    text = (ROOT / "docker-compose.yml").read_text()
    assert f"DEVICES:-{devices.count}" in text
    assert f"CPU_QUOTA_US:-{round((devices.cpus or 0) * 10_000)}" in text
    assert f"MEMORY_MB:-{devices.memory_mb}" in text


def test_render_gives_every_device_its_own_limits() -> None:
    changed = {"count": 2, "cpus": 0.4, "memory_mb": 500, "overrides": {"d1": {"cpus": 0.05, "accelerator": "cuda"}}}
    services = read(compose_file(scenario(devices=changed)))["services"]
    assert list(services) == ["controller", "d0", "d1"]
    assert (services["d0"]["cpu_quota"], services["d0"]["cpu_period"]) == (4000, 10_000)
    assert (services["d1"]["cpu_quota"], services["d1"]["cpu_period"]) == (5000, 100_000)
    assert services["d0"]["mem_limit"] == services["d0"]["memswap_limit"] == 500_000_000
    assert services["d1"]["image"].endswith(":cuda")
    assert services["d1"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_render_leaves_out_limits_that_are_not_asked_for() -> None:
    device = read(compose_file(scenario(devices={"count": 2})))["services"]["d0"]
    assert not {"cpu_quota", "mem_limit"} & device.keys()


def test_render_carries_the_whole_scenario_past_the_variables_of_compose() -> None:
    tree = read(compose_file(scenario()))
    assert tree["name"] == "testbed-two-unequal"
    carried = tree["services"]["controller"]["environment"]["SCENARIO"]
    assert "$$RANK" in carried
    assert parse(read(carried.replace("$$", "$")), "carried") == scenario()


def test_image_name_must_not_be_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_IMAGE", "")
    with pytest.raises(InputError, match="TESTBED_IMAGE must name an image, got ''"):
        image_name("cpu")


def test_image_takes_the_arguments_that_its_builders_give_and_has_both_targets() -> None:
    recipe = (ROOT / "images" / "Dockerfile").read_text()
    script = (ROOT / "images" / "build").read_text()
    given = read((ROOT / "docker-compose.yml").read_text())["services"]["device"]["build"]["args"]
    for name in given:
        assert re.search(rf"^ARG {name}=", recipe, re.MULTILINE)
        assert f'--build-arg "{name}=' in script
    assert re.findall(r"^FROM \S+ AS (\w+)$", recipe, re.MULTILINE)[-2:] == ["cpu", "cuda"]
    assert "FROM cpu AS cuda" in recipe
