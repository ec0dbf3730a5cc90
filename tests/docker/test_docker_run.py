"""Whole runs in containers of a real engine: life, limits, privileges, failures, and what is left behind."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import whole_runs
from whole_runs import cli, logs, start, state_of_run, wait_for_line, write

from testbed.runtimes.container import CAPABILITIES
from testbed.runtimes.docker import RUN_LABEL

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

CAPABILITY_NUMBERS = {
    "CHOWN": 0, "DAC_OVERRIDE": 1, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8, "NET_ADMIN": 12,
}  # fmt: skip
"""From capability.h."""


def docker(*arguments: str) -> list[str]:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def ours() -> list[str]:
    """Containers and networks that any run has on the engine."""
    chosen = ["--quiet", "--filter", f"label={RUN_LABEL}"]
    return [*docker("ps", "--all", *chosen), *docker("network", "ls", *chosen)]


def run(place: Path, command: list[str], *options: str, **changes: Any) -> subprocess.CompletedProcess[str]:
    return whole_runs.run(place, command, *options, runtime="docker", **changes)


def test_run_gives_programs_their_place_and_keeps_what_they_say(place: Path) -> None:
    script = 'echo "$RANK $WORLD_SIZE $TESTBED_DEVICE"; cat $TESTBED_CONFIG; echo "from $RANK" > $TESTBED_OUT/note.txt'
    done = run(place, ["sh", "-c", script], count=3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert logs(place, "d2") == '2 3 d2\n{"answer": 42}\n'
    assert (place / "out" / "devices" / "d1" / "note.txt").read_text() == "from 1\n"
    manifest = json.loads((place / "out" / "manifest.json").read_text())
    assert manifest["program_user"] == "program"
    assert len(set(manifest["addresses"].values())) == 3
    assert ours() == []


def test_program_has_no_capabilities_and_agent_has_those_it_needs(place: Path) -> None:
    done = run(place, ["cat", "/proc/self/status", "/proc/1/status"])
    assert done.returncode == 0, done.stderr
    said = logs(place, "d0")
    program, agent = said[: said.index("Name:", 1)], said[said.index("Name:", 1) :]
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert re.search(rf"^{kind}:\s+0+$", program, re.MULTILINE)
    assert re.search(r"^Uid:\s+10001\s", program, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", program, re.MULTILINE)
    held = re.search(r"^CapEff:\s+(\w+)$", agent, re.MULTILINE)
    assert held is not None
    assert int(held[1], 16) == sum(1 << CAPABILITY_NUMBERS[name] for name in CAPABILITIES)


def test_device_has_the_limits_of_the_scenario(place: Path) -> None:
    script = "from testbed.own_limits import own_limits; print(own_limits())"
    devices = {"count": 2, "cpus": 0.5, "memory_mb": 500, "overrides": {"d1": {"cpus": 0.25, "memory_mb": 600}}}
    done = run(place, ["python", "-c", script], devices=devices)
    assert done.returncode == 0, done.stderr
    assert logs(place, "d0") == f"cpus=0.5 memory_bytes={500_000_000 // 4096 * 4096}\n"
    assert logs(place, "d1") == f"cpus=0.25 memory_bytes={600_000_000 // 4096 * 4096}\n"


def test_device_can_be_written_to_only_where_nothing_stays(place: Path) -> None:
    done = run(place, ["sh", "-c", "touch /x /opt/x /cache/x; touch ~/x /tmp/x && pwd"])
    assert done.returncode == 0, done.stderr
    said = logs(place, "d0")
    assert said.count("Read-only file system") + said.count("Permission denied") == 3
    assert said.splitlines()[-1] == "/home/program"


def test_program_reaches_its_peers_and_nothing_else(place: Path) -> None:
    script = """
import json, os, socket, subprocess
def reach(address, port):
    try:
        socket.create_connection((address, port), timeout=2).close()
        return "reached"
    except ConnectionRefusedError:
        return "refused"
    except OSError:
        return "unreachable"
routes = json.loads(subprocess.run(["ip", "-j", "route"], capture_output=True, text=True).stdout)
own = {route["dev"]: route["prefsrc"] for route in routes if "prefsrc" in route}
gateways = [address.rsplit(".", 1)[0] + ".1" for address in own.values()]
print("peer", reach(os.environ["MASTER_ADDR"], 9))
print("control", [reach(gateway, 29401) for gateway in gateways])
print("default", [route for route in routes if route["dst"] == "default"])
print("own-name", socket.gethostbyname(socket.gethostname()).rsplit(".", 1)[0])
print("shaped", os.environ["MASTER_ADDR"].rsplit(".", 1)[0])
"""
    done = run(place, ["python", "-c", script])
    assert done.returncode == 0, done.stderr
    said = dict(line.split(" ", 1) for line in logs(place, "d1").splitlines())
    assert said["peer"] == "refused"
    assert "reached" not in said["control"]
    assert said["default"] == "[]"
    assert said["own-name"] == said["shaped"]


def test_run_names_a_program_that_outgrew_its_memory(place: Path) -> None:
    done = run(place, ["python", "-c", "x = bytearray(900 << 20)"])
    assert done.returncode == 1
    assert re.search(
        r"device d[01]: the program ended with signal 9 \(out of memory: the device has 500 MB\)", done.stderr
    )
    assert ours() == []


def test_run_names_the_program_that_failed(place: Path) -> None:
    done = run(place, ["sh", "-c", 'if [ "$RANK" = 1 ]; then echo the reason >&2; exit 3; fi; sleep 60'], count=3)
    assert done.returncode == 1
    assert "device d1: the program ended with exit code 3; its last lines:\n    the reason" in done.stderr
    assert ours() == []


def test_run_names_a_container_that_was_killed(place: Path) -> None:
    scenario = write(place, ["sleep", "300"])
    with start(place, "run", scenario, "--runtime", "docker", "--out", place / "out", "--no-calibrate") as process:
        wait_for_line(process, "running sleep")
        docker("kill", f"testbed-{state_of_run(place)['run_id']}-d1")
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait(20) == 1
    assert "device d1: its agent ended with status 137" in said
    assert ours() == []


def test_missing_image_is_named_with_the_way_to_make_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_IMAGE", "no-such-image:1")
    done = run(place, ["true"])
    assert done.returncode == 2
    assert "image no-such-image:1 must exist on this engine, got none; images/build cpu makes it" in done.stderr
    assert ours() == []


def test_missing_engine_is_named_with_the_way_out(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{place}/none.sock")
    done = run(place, ["true"])
    assert done.returncode == 2
    assert f"an engine must answer at unix://{place}/none.sock" in done.stderr


def test_interrupt_leaves_nothing_behind(place: Path) -> None:
    scenario = write(place, ["sh", "-c", "sleep 300 & sleep 300"])
    with start(place, "run", scenario, "--runtime", "docker", "--out", place / "out", "--no-calibrate") as process:
        wait_for_line(process, "running sh")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 1
    assert ours() == []
    assert json.loads((place / "out" / "summary.json").read_text())["status"] == "interrupted"


def test_down_removes_what_a_killed_controller_left(place: Path) -> None:
    scenario = write(place, ["sleep", "300"])
    with start(place, "run", scenario, "--runtime", "docker", "--out", place / "out", "--no-calibrate") as process:
        wait_for_line(process, "running sleep")
        process.kill()
    assert len(ours()) == 4  # two containers, two networks
    done = cli(place, "down")
    assert done.returncode == 0, done.stderr
    assert ours() == []


def test_up_exec_status_down(place: Path) -> None:
    up = cli(place, "up", write(place, ["true"]), "--runtime", "docker")
    assert up.returncode == 0, up.stderr
    shaped = cli(place, "exec", "d1", "--", "tc", "qdisc", "show", "dev", "tb-ifb")
    assert "htb" in shaped.stdout, shaped.stdout + shaped.stderr
    assert cli(place, "exec", "d0", "--", "sh", "-c", "exit 7").returncode == 7
    (status,) = json.loads(cli(place, "status", "--json").stdout)
    assert (status["runtime"], status["devices"], status["state"]) == ("docker", 2, "up")
    time.sleep(1.0)
    assert cli(place, "down").returncode == 0
    assert ours() == []


def test_two_runs_side_by_side_do_not_meet(place: Path) -> None:
    scenario = write(place, ["sh", "-c", "sleep 2; ip -4 -o address show"])
    outs = [place / "out-a", place / "out-b"]
    arguments = ("run", scenario, "--runtime", "docker", "--no-calibrate", "--out")
    processes = [start(place, *arguments, out) for out in outs]
    for process in processes:
        output, _ = process.communicate(timeout=90)
        assert process.returncode == 0, output
    addresses = [set(json.loads((out / "manifest.json").read_text())["addresses"].values()) for out in outs]
    assert not addresses[0] & addresses[1]
    assert ours() == []
