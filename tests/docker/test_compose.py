"""`docker compose up` with the shipped file and with rendered ones: the table, the result files, the refusals."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(420)]

ROOT = Path(__file__).parents[2]
SMOKE = {"SCENARIO": "scenarios/smoke.yaml", "DEVICES": "2", "CPU_QUOTA_US": "5000", "MEMORY_MB": "2000"}


@pytest.fixture
def checkout() -> Iterator[Path]:
    """What `docker compose up` needs of a checkout, in a folder whose name is that of the Compose project."""
    folder = Path(tempfile.mkdtemp(prefix="testbed-compose-"))
    shutil.copytree(ROOT / "scenarios", folder / "scenarios")
    shutil.copy(ROOT / "docker-compose.yml", folder)
    yield folder
    project = ["--project-name", folder.name.lower()]
    chosen = f"label=com.docker.compose.project={folder.name.lower()}"
    made = subprocess.run(["docker", "ps", "--all", "--quiet", "--filter", chosen], capture_output=True, text=True)
    for file in folder.glob("*.y*ml"):
        subprocess.run(["docker", "compose", *project, "-f", file, "down", "--volumes"], capture_output=True)
    listed = [("ps", "--all", "--quiet"), ("network", "ls", "--quiet"), ("volume", "ls", "--quiet")]
    for words in listed:
        left = subprocess.run(["docker", *words, "--filter", chosen], capture_output=True, text=True).stdout
        assert left == ""
    assert [path for each in made.stdout.split() for path in Path("/sys/fs/cgroup").glob(f"**/{each}*")] == []
    shutil.rmtree(folder)


def up(checkout: Path, file: str = "docker-compose.yml", **variables: str) -> subprocess.CompletedProcess[str]:
    project = ["--project-name", checkout.name.lower(), "-f", file]
    line = ["docker", "compose", *project, "up", "--no-build", "--no-color", "--exit-code-from", "controller"]
    return subprocess.run(
        line, cwd=checkout, env={**os.environ, **variables}, capture_output=True, text=True, timeout=400
    )


def test_up_ends_with_the_table_and_the_results(checkout: Path) -> None:
    done = up(checkout, **SMOKE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "smoke: 2 devices, 0.5 CPU each, 50 Mbps a link" in done.stdout
    (folder,) = (checkout / "results").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "ok"
    assert {row["strategy"] for row in summary["rows"]} >= {"single", "sequence", "astra"}


def test_up_refuses_another_number_of_devices(checkout: Path) -> None:
    done = up(checkout, **{**SMOKE, "DEVICES": "3"})
    assert done.returncode == 2
    assert "devices.count: must be the number of agents, got 2 and 3 agents; set DEVICES=2" in done.stdout + done.stderr


def test_up_refuses_limits_other_than_the_scenarios(checkout: Path) -> None:
    done = up(checkout, **{**SMOKE, "CPU_QUOTA_US": "4000"})
    assert done.returncode == 2
    assert "d0: cpus must be 0.5 as in the scenario, got 0.4; set CPU_QUOTA_US=5000" in done.stdout + done.stderr


def test_rendered_file_runs_unequal_devices(checkout: Path) -> None:
    (checkout / "unequal.yaml").write_text(
        "name: unequal\n"
        "devices: {count: 2, cpus: 0.5, memory_mb: 400, overrides: {d1: {cpus: 0.25}}}\n"
        "links: {default: {rate_mbps: 50}}\n"
        "workload:\n"
        "  command: [sh, -c, 'echo \"I am $TESTBED_DEVICE: $(cat /sys/fs/cgroup/cpu.max || "
        "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us)\"']\n"
    )
    rendered = subprocess.run(
        [sys.executable, "-m", "testbed", "render", "unequal.yaml"], cwd=checkout, capture_output=True, text=True
    )
    assert rendered.returncode == 0, rendered.stderr
    (checkout / "unequal.yaml").unlink()
    (checkout / "rendered.yml").write_text(rendered.stdout)
    done = up(checkout, "rendered.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (checkout / "results").iterdir()
    said = [(folder / "logs" / f"d{rank}.log").read_text() for rank in range(2)]
    assert "I am d0: 5000" in said[0]
    assert "I am d1: 2500" in said[1]


def config(*files: str, **variables: str) -> dict[str, Any]:
    """What Compose makes of our files."""
    chosen = [word for file in files for word in ("-f", str(ROOT / file))]
    line = ["docker", "compose", *chosen, "config", "--format", "json"]
    done = subprocess.run(line, env={**os.environ, **variables}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_gpu_file_gives_devices_every_gpu_and_the_image_of_the_cuda_target() -> None:
    services = config("docker-compose.yml", "docker-compose.gpu.yml")["services"]
    for service in services.values():
        assert service["image"] == "astra-testbed:cuda"
        assert service["build"]["target"] == "cuda"
    (gpu,) = services["device"]["deploy"]["resources"]["reservations"]["devices"]
    assert (gpu["driver"], gpu["capabilities"], int(gpu["count"])) == ("nvidia", ["gpu"], -1)
    assert services["device"]["deploy"]["replicas"] == 4
    assert "devices" not in services["controller"].get("deploy", {}).get("resources", {}).get("reservations", {})


def test_build_takes_another_base_and_an_index_of_torch() -> None:
    services = config("docker-compose.yml", BASE_IMAGE="lab/python:3.11", TORCH_INDEX="lab-index")["services"]
    for service in services.values():
        assert service["build"]["args"] == {"BASE_IMAGE": "lab/python:3.11", "TORCH_INDEX": "lab-index"}
        assert service["build"]["target"] == "cpu"
