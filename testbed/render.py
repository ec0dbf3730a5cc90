"""Scenario to the Compose file that runs it, with a service for every device. Pure.

    testbed render S.yaml > run.yaml; docker compose -f run.yaml up --exit-code-from controller

What docker-compose.yml says for equal devices, this says for each: limits, accelerator, image. The resolved scenario is
inside, so the file can be carried elsewhere.
"""

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from testbed.runtimes.cgroups import cpu_quota
from testbed.runtimes.container import (
    AGENT_FOLDER,
    AGENT_KEYS,
    CACHE_FOLDER,
    CAPABILITIES,
    CONTROL_PORT,
    KEYS_FOLDER,
    SECURITY_OPTIONS,
    TMPFS,
    image_name,
)
from testbed.scenario import DeviceSpec, Scenario, device_names

__all__ = ["compose_file"]

# The scenario comes as a variable: Compose cannot put its own configs on a read-only file system.
START_CONTROLLER = (
    'printf %s "$$SCENARIO" >/tmp/scenario.yaml && exec testbed run --runtime compose --plain /tmp/scenario.yaml'
)


def compose_file(scenario: Scenario) -> str:
    """Return the Compose file as YAML."""
    names = device_names(scenario.devices.count)
    services = {
        "controller": _controller(scenario),
        **{name: _device(name, scenario.devices.spec(name)) for name in names},
    }
    tree = {
        "name": f"testbed-{_project_name(scenario.name)}",
        "services": services,
        "networks": {"data": {"internal": True}, "control": {"internal": True}},
        "volumes": {"cache": {}, "keys": {}},
    }
    writer = YAML(typ="rt")
    writer.width = 120
    text = io.StringIO()
    writer.dump(tree, text)
    return text.getvalue()


def _controller(scenario: Scenario) -> dict[str, Any]:
    # Compose replaces $NAME in every value of the file; $$ stands for the sign itself.
    content = LiteralScalarString(scenario.dump().replace("$", "$$"))
    return {
        "image": image_name("cpu"),
        "entrypoint": ["sh", "-c", START_CONTROLLER],
        "working_dir": "/project",
        "environment": {"COLUMNS": "120", "SCENARIO": content},
        "cap_drop": ["ALL"],
        "cap_add": ["DAC_OVERRIDE"],
        "security_opt": list(SECURITY_OPTIONS),
        "read_only": True,
        "tmpfs": ["/tmp", "/run"],  # noqa: S108  # the container's own
        "volumes": ["./results:/project/results", f"cache:{CACHE_FOLDER}", f"keys:{KEYS_FOLDER}"],
        "networks": ["control"],
    }


def _device(name: str, spec: DeviceSpec) -> dict[str, Any]:
    quota_us, period_us = cpu_quota(spec.cpus)
    service: dict[str, Any] = {
        "image": image_name(spec.accelerator),
        "hostname": name,
        "command": [
            *("--device", name, "--endpoint", f"tcp://controller:{CONTROL_PORT}"),
            *("--folder", AGENT_FOLDER, "--keys", AGENT_KEYS),
        ],
        "depends_on": ["controller"],
        "cap_drop": ["ALL"],
        "cap_add": list(CAPABILITIES),
        "security_opt": list(SECURITY_OPTIONS),
        "read_only": True,
        "tmpfs": [f"{place}:{options}" for place, options in TMPFS.items()],
        "cpu_period": period_us,
        "volumes": [f"cache:{CACHE_FOLDER}:ro", f"keys:{KEYS_FOLDER}:ro"],
        "networks": ["data", "control"],
    }
    if quota_us is not None:
        service["cpu_quota"] = quota_us
    if spec.memory_mb is not None:
        service |= dict.fromkeys(("mem_limit", "memswap_limit"), spec.memory_mb * 10**6)
    if spec.accelerator == "cuda":
        devices = [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
        service["deploy"] = {"resources": {"reservations": {"devices": devices}}}
    return service


def _project_name(name: str) -> str:
    """Return a name that Compose takes: small letters, digits, - and _."""
    return "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "-" for letter in name.lower()
    )
