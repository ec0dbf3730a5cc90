"""Whole runs in network namespaces, with small shell and Python programs: life, failures, and what is left behind."""

import csv
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from whole_runs import TESTBED, cli, environment, run, start, state_of_run, wait_for_line, write

from testbed import controller
from testbed.display import Display
from testbed.errors import DeviceError
from testbed.options import Options
from testbed.runtimes import RUNTIMES
from testbed.runtimes.netns import NetnsRuntime
from testbed.scenario import load

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

DEATH_LIMIT_S = 2.0
"""A device whose program dies has to end the run within this time."""
REMOVAL_SLACK_S = 2.0
"""Time to take the devices down afterwards, on a busy machine."""


def traces(place: Path) -> dict[str, Any]:
    """All that runs of this test could have left on the machine."""
    pids = subprocess.run(["pgrep", "-f", str(place)], capture_output=True, text=True).stdout.split()
    states = [path.name for path in (place / "state").glob("*")] if (place / "state").exists() else []
    made = set(run_ids(place))
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob("**/testbed-*") if path.name[8:] in made]
    return {
        "processes": pids,
        "states": states,
        "namespaces": [name for name in re.findall(r"tb-(\w+)-\w+", spaces) if name in made],
        "cgroups": groups,
    }


NOTHING: dict[str, Any] = {"processes": [], "states": [], "namespaces": [], "cgroups": []}
_seen: dict[Path, set[str]] = {}


def run_ids(place: Path) -> set[str]:
    """The ids of this test's runs, remembered while their state was there."""
    seen = _seen.setdefault(place, set())
    if (place / "state").exists():
        seen.update(path.name for path in (place / "state").iterdir())
    return seen


ROW_PROGRAM = """
import json, os, socket
call = socket.socket(socket.AF_UNIX)
call.connect(os.environ["TESTBED_SOCKET"])
stream = call.makefile("rw")
def ask(**request):
    stream.write(json.dumps(request) + "\\n"); stream.flush()
    return json.loads(stream.readline())
rank = int(os.environ["RANK"])
assert ask(op="barrier", name="all")["ok"]
marked = ask(op="mark", name="begin")
assert set(marked["links"]) == {f"d{peer}" for peer in range(int(os.environ["WORLD_SIZE"])) if peer != rank}, marked
config = json.load(open(os.environ["TESTBED_CONFIG"]))
limits = ("OMP_NUM_THREADS", "TESTBED_CPUS", "TESTBED_MEMORY_MB")
names = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TESTBED_DEVICE", *limits)
row = {"rank": rank, "answer": config["answer"], **{n.lower(): os.environ[n] for n in names}}
ask(op="row", table="summary", row=row)
open(os.environ["TESTBED_OUT"] + "/note.txt", "w").write(f"from {rank}")
print("done", rank)
"""


def test_run_gives_programs_their_place_and_keeps_what_they_say(place: Path) -> None:
    done = run(place, [sys.executable, "-c", ROW_PROGRAM], count=3)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((place / "out" / "summary.json").read_text())
    assert summary["status"] == "ok"
    rows = sorted(summary["rows"], key=lambda row: row["rank"])
    common = {"answer": 42, "world_size": "3", "local_rank": "0", "master_addr": "10.77.0.1", "master_port": "29500"}
    common |= {"omp_num_threads": "1", "testbed_cpus": "0.5", "testbed_memory_mb": "500"}
    assert rows == [{"rank": rank, **common, "testbed_device": f"d{rank}"} for rank in range(3)]
    assert (place / "out" / "devices" / "d2" / "note.txt").read_text() == "from 2"
    assert "done 1" in (place / "out" / "logs" / "d1.log").read_text()
    manifest = json.loads((place / "out" / "manifest.json").read_text())
    assert manifest["kernel"] == os.uname().release
    with (place / "out" / "links.csv").open() as file:
        links = {(row["source"], row["destination"]) for row in csv.DictReader(file)}
    assert len(links) == 6
    assert traces(place) == NOTHING


def test_run_drops_privileges(place: Path) -> None:
    done = run(place, ["cat", "/proc/self/status"])
    assert done.returncode == 0, done.stderr
    status = (place / "out" / "logs" / "d0.log").read_text()
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)


def test_run_caps_cpu_with_a_period_of_10_ms(place: Path) -> None:
    script = "import time; a = time.monotonic(); c = time.process_time()\nwhile time.monotonic() - a < 2: pass\n"
    script += "print('share', (time.process_time() - c) / 2)"
    done = run(place, [sys.executable, "-c", script])
    assert done.returncode == 0, done.stderr
    share = float((place / "out" / "logs" / "d0.log").read_text().split()[-1])
    assert 0.05 < share < 0.55  # asked 0.5; far less if others load the machine


def test_run_names_a_program_that_outgrew_its_memory(place: Path) -> None:
    done = run(place, [sys.executable, "-c", "x = bytearray(900 << 20)"])
    assert done.returncode == 1
    assert re.search(
        r"device d[01]: the program ended with signal 9 \(out of memory: the device has 500 MB\)", done.stderr
    )
    assert traces(place) == NOTHING


def test_run_ends_within_2_s_of_a_death_and_names_it(place: Path) -> None:
    died_at = place / "died"
    script = f'if [ "$RANK" = 1 ]; then sleep 1; echo the reason >&2; date +%s.%N > {died_at}; exit 3; fi; sleep 60'
    done = run(place, ["sh", "-c", script], count=4)
    late = time.time() - float(died_at.read_text())
    assert done.returncode == 1
    assert "device d1: the program ended with exit code 3; its last lines:\n    the reason" in done.stderr
    assert late < DEATH_LIMIT_S + REMOVAL_SLACK_S
    summary = json.loads((place / "out" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "device d1" in summary["error"]
    assert traces(place) == NOTHING


def test_run_names_a_device_that_leaves_others_at_a_barrier(place: Path) -> None:
    waiting = ROW_PROGRAM.split("marked =")[0]
    script = f"import os\nif os.environ['RANK'] == '0': raise SystemExit(0)\nimport time; time.sleep(0.5)\n{waiting}"
    done = run(place, [sys.executable, "-c", script], "--timeout-s", "20")
    assert done.returncode == 1
    assert "device d1 waits at barrier 'all', but d0 has ended" in done.stderr


def test_run_gives_up_on_a_program_after_its_timeout(place: Path) -> None:
    done = run(place, ["sh", "-c", '[ "$RANK" = 1 ] && sleep 60; exit 0'], "--timeout-s", "2")
    assert done.returncode == 1
    assert "sh on d1 did not end within 2 s" in done.stderr
    assert traces(place) == NOTHING


def test_run_fails_when_an_expectation_is_not_met(place: Path) -> None:
    expect = [{"metric": "answer", "where": {"rank": 0}, "at_least": 43}]
    done = run(place, [sys.executable, "-c", ROW_PROGRAM], expect=expect)
    assert done.returncode == 1
    assert "answer (rank=0) must be at least 43, got 42" in done.stdout
    assert json.loads((place / "out" / "summary.json").read_text())["status"] == "failed"


def test_run_names_a_missing_program(place: Path) -> None:
    done = run(place, ["no-such-program"])
    assert done.returncode == 1
    assert "workload.command: must name a program on the device, got 'no-such-program'" in done.stderr


def test_run_refuses_what_the_workload_refuses_before_anything_starts(place: Path) -> None:
    refuse = ["sh", "-c", 'echo "$TESTBED_CONFIG: answer must be 43, got 42; think again" >&2; exit 2']
    scenario = write(place, ["true"], workload={"command": ["true"], "check": refuse, "config": {"answer": 42}})
    done = cli(place, "run", scenario, "--out", place / "out")
    assert done.returncode == 2
    assert "workload.config: answer must be 43, got 42; think again" in done.stderr
    assert not (place / "out").exists()


def test_run_prepares_once_before_the_devices(place: Path) -> None:
    prepare = ["sh", "-c", f"echo once >> {place}/prepared; echo preparing"]
    done = run(
        place, ["cat", str(place / "prepared")], workload={"command": ["true"], "prepare": prepare, "config": {}}
    )
    assert done.returncode == 0, done.stderr
    assert (place / "prepared").read_text() == "once\n"
    assert "preparing" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_interrupt_leaves_nothing_behind(place: Path, number: signal.Signals) -> None:
    scenario = write(place, ["sh", "-c", "sleep 300 & sleep 300"], count=3)
    with start(place, "run", scenario, "--out", place / "out", "--no-calibrate", "--plain") as process:
        wait_for_line(process, "running sh")
        time.sleep(0.5)
        run_ids(place)
        process.send_signal(number)
        assert process.wait(20) == 1
    assert traces(place) == NOTHING
    assert json.loads((place / "out" / "summary.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("cure", ["down", "next start"])
def test_killed_controller_is_cleaned_up(place: Path, cure: str) -> None:
    scenario = write(place, ["sh", "-c", "sleep 300"], count=3)
    with start(place, "run", scenario, "--out", place / "out", "--no-calibrate", "--plain") as process:
        wait_for_line(process, "running sh")
        time.sleep(0.5)
        run_ids(place)
        process.kill()
    assert traces(place) != NOTHING
    if cure == "down":
        done = cli(place, "down")
    else:
        done = cli(place, "run", write(place, ["true"]), "--out", place / "out2", "--no-calibrate")
        assert "left behind" in done.stdout
    assert done.returncode == 0, done.stderr
    assert traces(place) == NOTHING


def test_killed_agent_is_named(place: Path) -> None:
    scenario = write(place, ["sleep", "300"], count=2)
    with start(place, "run", scenario, "--out", place / "out", "--no-calibrate", "--plain") as process:
        wait_for_line(process, "running sleep")
        os.kill(state_of_run(place)["agents"]["d1"]["pid"], signal.SIGKILL)
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait(10) == 1
    assert "device d1: its agent ended with status -9" in said
    assert traces(place) == NOTHING


def test_device_that_never_reports_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OneSilent(NetnsRuntime):
        register_timeout_s = 10.0

        def _joining(self, device: str, command: Sequence[str]) -> list[str]:
            return super()._joining(device, ["sleep", "60"] if device == "d1" else command)

    monkeypatch.setitem(RUNTIMES, "netns", OneSilent)
    monkeypatch.setenv("TESTBED_STATE_DIR", str(place / "state"))
    scenario = load(write(place, ["true"], count=3))
    with pytest.raises(DeviceError, match="agent of d1 never reported within 13 s"):
        controller.run(scenario, Options(out=place / "out"), Display(Console(quiet=True)))
    assert traces(place) == NOTHING


def test_up_exec_status_down(place: Path) -> None:
    scenario = write(place, ["true"], count=2)
    up = cli(place, "up", scenario)
    assert up.returncode == 0, up.stderr
    run_ids(place)
    seen = cli(place, "exec", "d0", "--", "ip", "-4", "-o", "address", "show", "eth0")
    assert "10.77.0.1/24" in seen.stdout
    ping = cli(place, "exec", "d0", "--", "ping", "-c", "2", "-W", "2", "10.77.0.2")
    if shutil.which("ping"):
        assert ping.returncode == 0, ping.stdout + ping.stderr
    assert cli(place, "exec", "d0", "--", "sh", "-c", "exit 7").returncode == 7
    status = json.loads(cli(place, "status", "--json").stdout)
    assert [(entry["name"], entry["devices"], entry["state"]) for entry in status] == [("test", 2, "up")]
    wrong = cli(place, "exec", "d9", "--", "true")
    assert wrong.returncode == 2
    assert "DEVICE: must be one of d0, d1, got 'd9'" in wrong.stderr
    assert cli(place, "down", "other").returncode == 2
    down = cli(place, "down", "test")
    assert down.returncode == 0, down.stderr
    assert traces(place) == NOTHING


def test_up_outlives_its_controller_and_keeps_links_shaped(place: Path) -> None:
    cli(place, "up", write(place, ["true"], count=2))
    time.sleep(1.0)
    shown = cli(place, "exec", "d1", "--", "tc", "qdisc", "show")
    assert "htb" in shown.stdout, shown.stdout + shown.stderr


def test_two_runs_side_by_side_do_not_meet(place: Path) -> None:
    scenario = write(place, ["sh", "-c", "sleep 2; ip -4 -o address show eth0"], count=2)
    outs = [place / "out-a", place / "out-b"]
    processes = [start(place, "run", scenario, "--out", out, "--no-calibrate") for out in outs]
    for process in processes:
        output, _ = process.communicate(timeout=90)
        assert process.returncode == 0, output
    assert traces(place) == NOTHING


# Makes the interpreter reachable for everybody, in a mount namespace of its own, then becomes another user.
AS_NOBODY = """
set -e
reach="$1"; shift
if [ -n "$reach" ]; then
    top="/$(echo "$reach" | cut -d/ -f2)"
    mkdir -p "$HERE/bind"
    mount --bind "$reach" "$HERE/bind"
    mount -t tmpfs -o mode=755 tmpfs "$top"
    mkdir -p "$reach"
    mount --bind "$HERE/bind" "$reach"
fi
cd "$HERE"
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
"""


def _as_nobody_line(place: Path) -> list[str]:
    place.chmod(0o777)
    prefix = Path(sys.base_prefix)
    hidden = any(not parent.stat().st_mode & 0o001 for parent in prefix.parents)
    return ["unshare", "--mount", "sh", "-c", AS_NOBODY, "sh", str(prefix) if hidden else ""]


def _nobodys_environment(place: Path) -> dict[str, str]:
    return {**environment(place), "HERE": str(place), "HOME": str(place)}


def as_nobody(place: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [*_as_nobody_line(place), *TESTBED, *map(str, arguments)]
    return subprocess.run(line, env=_nobodys_environment(place), capture_output=True, text=True, timeout=60)


def as_nobody_in_background(place: Path, *command: str) -> subprocess.Popen[str]:
    line = [*_as_nobody_line(place), *command]
    return subprocess.Popen(
        line, env=_nobodys_environment(place), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_user_who_is_not_root_runs_in_a_user_namespace(place: Path) -> None:
    scenario = write(place, ["ip", "-o", "address"], devices={"count": 2})
    done = as_nobody(place, "run", scenario, "--out", place / "out", "--no-calibrate")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10.77.0.2/24" in (place / "out" / "logs" / "d1.log").read_text()
    assert traces(place) == NOTHING


def test_user_who_is_not_root_is_told_how_to_have_limits(place: Path) -> None:
    done = as_nobody(place, "run", write(place, ["true"]), "--out", place / "out", "--no-calibrate")
    assert done.returncode == 2
    assert "cgroups: " in done.stderr
    assert "--uncapped" in done.stderr
    done = as_nobody(place, "run", place / "scenario.yaml", "--out", place / "out2", "--no-calibrate", "--uncapped")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((place / "out2" / "manifest.json").read_text())["options"]["uncapped"] is True


def test_user_who_is_not_root_can_remove_what_a_crash_left(place: Path) -> None:
    scenario = write(place, ["sh", "-c", "sleep 301 & sleep 302"], devices={"count": 2})
    script = (
        f"{sys.executable} -m testbed run {scenario} --out {place}/out --no-calibrate --plain & echo $! > pid; wait"
    )
    with as_nobody_in_background(place, "sh", "-c", script) as process:
        wait_for_line(process, "running sh")
        time.sleep(0.5)
        run_ids(place)
        os.kill(int((place / "pid").read_text()), signal.SIGKILL)
    assert sleeping("sleep 301")
    done = as_nobody(place, "down")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not sleeping("sleep 301")
    assert not sleeping("sleep 302")
    assert traces(place) == NOTHING
    assert json.loads((place / "out" / "summary.json").read_text())["status"] == "interrupted"


def sleeping(command: str) -> list[str]:
    return subprocess.run(["pgrep", "-fx", command], capture_output=True, text=True).stdout.split()


def test_controller_killed_while_it_makes_devices_is_cleaned_up(place: Path) -> None:
    scenario = write(place, ["true"], count=4)
    for delay_s in (0.05, 0.2, 0.4):
        with start(place, "run", scenario, "--out", place / f"out{delay_s}", "--no-calibrate", "--plain") as process:
            wait_for_line(process, "starting 4 devices")
            time.sleep(delay_s)
            run_ids(place)
            process.kill()
        assert cli(place, "down").returncode == 0
        assert traces(place) == NOTHING


def test_many_downs_at_once_do_not_disturb_one_another(place: Path) -> None:
    assert cli(place, "up", write(place, ["true"], count=3)).returncode == 0
    run_ids(place)
    downs = [start(place, "down") for _ in range(3)]
    for down in downs:
        said, _ = down.communicate(timeout=60)
        assert down.returncode == 0, said
    assert traces(place) == NOTHING


def test_run_ends_with_a_message_when_its_folder_is_deleted(place: Path) -> None:
    scenario = write(place, ["sh", "-c", "while sleep 0.2; do echo line; done"], count=2)
    with start(place, "run", scenario, "--out", place / "out", "--no-calibrate", "--plain") as process:
        wait_for_line(process, "running sh")
        run_ids(place)
        shutil.rmtree(place / "out")
        assert process.stdout is not None
        said = process.stdout.read()
        assert process.wait(20) == 1
    assert "the run folder must stay writable" in said
    assert "Traceback" not in said
    assert traces(place) == NOTHING


def test_run_refuses_more_cpus_than_the_machine_has(place: Path) -> None:
    scenario = write(place, ["true"], devices={"count": 2, "cpus": 64})
    done = cli(place, "run", scenario, "--out", place / "out", "--no-calibrate")
    assert done.returncode == 2
    assert "devices.cpus: must add up to at most this machine's" in done.stderr
    assert cli(place, "run", scenario, "--out", place / "out2", "--no-calibrate", "--go-on").returncode == 0


def test_calibrate_of_one_device_has_nothing_to_show(place: Path) -> None:
    done = cli(place, "calibrate", write(place, ["true"], count=1), "--out", place / "out")
    assert done.returncode == 0, done.stderr
    assert "nothing to show" in done.stdout


def test_run_names_files_that_it_could_not_collect(place: Path) -> None:
    script = (
        "import os; os.chdir(os.environ['TESTBED_OUT']); open(b'bad\\xff', 'w').close(); open('good', 'w').write('1')"
    )
    done = run(place, [sys.executable, "-c", script])
    assert done.returncode == 0, done.stderr
    assert "d0 left files that were not collected: bad" in done.stdout
    assert (place / "out" / "devices" / "d0" / "good").read_text() == "1"


def test_run_for_a_user_of_sudo_leaves_nothing_of_roots(place: Path) -> None:
    user = pwd.getpwnam("nobody")
    place.chmod(0o755)
    scenario = write(place, ["id", "-u"], count=2, links={"default": {"rate_mbps": 50}})
    line = [*TESTBED, "run", str(scenario), "--out", str(place / "out"), "--no-calibrate"]
    surroundings = {**environment(place), "SUDO_UID": str(user.pw_uid), "SUDO_GID": str(user.pw_gid)}
    done = subprocess.run(line, cwd=place, env=surroundings, capture_output=True, text=True, umask=0o077, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (place / "out" / "logs" / "d0.log").read_text().split() == [str(user.pw_uid)]
    assert {path.stat().st_uid for path in (place / "out").rglob("*")} == {user.pw_uid}
    done = subprocess.run(
        [*line[:-2], str(place / "out2")],
        cwd=place,
        env={**surroundings, "SUDO_UID": "99999"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "SUDO_UID: must be a user of this machine" in done.stderr
