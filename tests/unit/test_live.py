"""What is seen of a network while it runs: what devices use, how it is drawn, and how the screen is left."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from testbed import live_devices, status
from testbed.display import Display
from testbed.known_device import KnownDevice
from testbed.live_devices import DeviceMeter, Use
from testbed.live_links import LinkNow
from testbed.live_sample import DeviceNow, Snapshot, Watcher
from testbed.live_view import line_of, picture
from testbed.protocol.from_agents import Exited
from testbed.runtimes.state import ProcessId, RunState
from testbed.scenario import DeviceSpec

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
"""The cursor."""
BUSY_CPUS = (0.02, 1.5)
"""What a process that computes may be seen to use: little on a machine that is busy with others."""


def snapshot(count: int, *, rate_bps: float | None = 9.6e6, states: str = "running") -> Snapshot:
    names = [f"d{number}" for number in range(count)]
    devices = tuple(DeviceNow(name, states, Use(0.395, 0.4, 812_000_000, 3_000_000_000)) for name in names)
    pairs = [(source, destination) for destination in names for source in names if source != destination]
    return Snapshot(devices, tuple(LinkNow(*pair, rate_bps, 10e6, lost=12, overflowed=3) for pair in pairs))


def drawn(found: Snapshot, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(picture(found, width=width, height=height))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.fixture
def busy() -> Iterator[int]:
    """A process that does nothing itself, whose child computes."""
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    yield process.pid
    os.killpg(process.pid, 9)
    process.wait()


@pytest.fixture
def own_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TESTBED_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


def a_run(run_id: str = "ab12cd") -> RunState:
    """Two devices, whose agents are this process."""
    own = ProcessId.of(os.getpid())
    agents = {"d0": own, "d1": own}
    state = RunState(run_id, "test", "netns", ("d0", "d1"), controller=own, agents=agents)
    state.save()
    return state


def test_meter_counts_all_processes_of_a_device_without_a_group(busy: int) -> None:
    meter = DeviceMeter(busy, "no such group")
    assert meter.look().cpus is None
    time.sleep(1.0)
    use = meter.look()
    assert use.cpus is not None
    assert BUSY_CPUS[0] < use.cpus < BUSY_CPUS[1]
    assert use.memory_bytes is not None
    assert use.memory_bytes > 1_000_000
    assert (use.cpus_limit, use.memory_limit_bytes) == (None, None)


@pytest.mark.parametrize("version", [1, 2])
def test_meter_reads_the_group_of_a_device(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        1: {
            "cpuacct.usage": "2000000000",
            "cpu.cfs_quota_us": "4000",
            "cpu.cfs_period_us": "10000",
            "memory.usage_in_bytes": "900",
            "memory.stat": "cache 7\ntotal_inactive_file 100\n",
            "memory.limit_in_bytes": "9223372036854771712",
        },
        2: {
            "cpu.stat": "usage_usec 2000000\nuser_usec 1\n",
            "cpu.max": "4000 10000",
            "memory.current": "900",
            "memory.stat": "anon 7\ninactive_file 100\n",
            "memory.max": "max",
        },
    }[version]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    folders = dict.fromkeys(("cpu", "cpuacct", "memory") if version == 1 else ("",), tmp_path)
    monkeypatch.setattr(live_devices, "_own_folders", lambda pid, group: folders)
    assert DeviceMeter(1, "g").look() == Use(None, 0.4, 800, None)


@pytest.mark.parametrize(
    ("kinds", "groups", "group", "found"),
    [
        (
            "12",
            "3:memory:/testbed-ab/d1\n2:cpu,cpuacct:/testbed-ab/d1\n0::/",
            "testbed-ab/d1",
            ["cpu", "cpuacct", "memory"],
        ),
        ("2", "0::/user.slice/testbed-ab/d1", "testbed-ab/d1", [""]),
        ("2", "0::/user.slice/testbed-ab/d1", "testbed-ab/d0", []),
        ("2", "0::/system.slice/docker-12ab.scope", "docker", [""]),
        ("12", "3:memory:/docker/12ab\n2:cpu,cpuacct:/docker/12ab\n0::/", "docker", ["cpu", "cpuacct", "memory"]),
    ],
)
def test_folders_are_those_of_the_device_alone(
    kinds: str, groups: str, group: str, found: list[str], tmp_path: Path
) -> None:
    mounts = "tmpfs /run tmpfs rw 0 0\n"
    if "1" in kinds:
        mounts += f"cgroup {tmp_path} cgroup rw,cpu,cpuacct 0 0\ncgroup {tmp_path} cgroup rw,memory 0 0\n"
    mounts += f"cgroup2 {tmp_path} cgroup2 rw 0 0\n"
    path = groups.splitlines()[0].rsplit(":")[-1]
    (tmp_path / path[1:]).mkdir(parents=True)
    assert sorted(live_devices.find_folders(groups, mounts, group)) == found


def test_meter_of_a_process_that_has_gone_knows_nothing() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert DeviceMeter(process.pid, "g").look() == Use()


@pytest.mark.parametrize("width", [20, 40, 59, 60, 80, 115, 116, 200])
@pytest.mark.parametrize("height", [1, 3, 6, 22, 60])
@pytest.mark.parametrize("count", [1, 4, 64])
def test_picture_fits_its_place(width: int, height: int, count: int) -> None:
    lines = drawn(snapshot(count), width, height)
    assert len(lines) <= height
    assert max(map(len, lines), default=0) <= width


def test_picture_shows_devices_and_links() -> None:
    text = "\n".join(drawn(snapshot(2), 80, 20))
    assert "0.40 of 0.4" in text
    assert "812 of 3000 MB" in text
    assert "d1→d0" in text
    assert "9.60 of 10" in text


def test_picture_of_many_links_shows_the_busiest_and_says_what_is_left_out() -> None:
    calm = snapshot(8, rate_bps=1e3)
    busiest = LinkNow("d7", "d6", 5e6, None, lost=0, overflowed=0)
    text = "\n".join(drawn(Snapshot(calm.devices, (*calm.links, busiest)), 80, 20))
    first_link = text.split("overflowed")[1].splitlines()[1]
    assert first_link.startswith("d7→d6")
    assert "other links: 0.1 Mbps, " in text


def test_line_says_all_in_plain_text_and_stays_the_same_when_nothing_happens() -> None:
    line = line_of(snapshot(2, states="up"))
    assert line == "devices: 2 up, 0.8 CPU, 1624 MB, 2 links: 19.2 Mbps, 24 lost, 6 overflowed"
    assert line_of(Snapshot()) == "devices: none"


def test_activity_says_what_a_device_is_doing() -> None:
    device = KnownDevice(0, DeviceSpec(cpus=0.5, memory_mb=100, accelerator="cpu"))
    said = [device.activity]
    device.address = "10.77.0.1"
    said.append(device.activity)
    device.started = True
    said.append(device.activity)
    device.note_event("pause")
    said.append(device.activity)
    device.note_event("resume")
    device.exited = Exited(code=0, last_lines=())
    said.append(device.activity)
    device.exited = Exited(code=-9, last_lines=(), by_event=True)
    said.append(device.activity)
    device.state = "down"
    assert [*said, device.activity] == ["starting", "ready", "running", "paused", "ended", "killed", "down"]


def test_watcher_sees_a_run_until_it_is_forgotten(own_runs: Path) -> None:
    state = a_run()
    watcher = Watcher(state.run_id, lambda: {"d0": "paused"})
    seen = watcher.sample()
    assert seen is not None
    assert [device.state for device in seen.devices] == ["paused", "up"]
    state.forget()
    assert watcher.sample() is None
    watcher.close()


def test_live_display_leaves_the_terminal_as_it_was(own_runs: Path) -> None:
    said = io.StringIO()
    console = Console(file=said, width=80, height=24, force_terminal=True)
    state = a_run()

    def fail() -> None:
        with Display(console) as display, display.watching(state.run_id, dict):
            display.phase("running [this]")
            display.progress("astra [G=1]", 3, 10)
            time.sleep(0.7)  # a refresh
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    text = said.getvalue()
    assert "running [this]" in text
    assert "3/10" in text
    assert "memory" in text  # the devices' table
    assert text.rindex(SHOW) > text.rindex(HIDE)
    assert text.rindex("\x1b[2K") > text.rindex("memory")  # all of it was erased


def test_plain_display_looks_at_nothing_and_writes_no_control_codes(own_runs: Path) -> None:
    said = io.StringIO()
    display = Display(Console(file=said, width=80, force_terminal=True, no_color=True), live=False)
    with display, display.watching("no such run", lambda: pytest.fail("looked")):
        display.progress("a", 1, 2)
    assert "\x1b[?" not in said.getvalue()
    assert "\x1b[2K" not in said.getvalue()


def test_status_watch_in_lines_ends_when_nothing_is_left(own_runs: Path) -> None:
    state, said, slept = a_run(), io.StringIO(), []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            state.forget()

    status.watch(Console(file=said, width=80), live=False, sleep=sleep)
    lines = said.getvalue().splitlines()
    assert "ab12cd  test (netns), running: devices: 2 up" in lines[0]
    assert lines[-1] == "nothing is up"
    assert len(lines) <= len(slept) + 1


def test_status_watch_shows_several_runs_and_ends_quietly_on_ctrl_c(own_runs: Path) -> None:
    a_run("aaaaaa"), a_run("bbbbbb")
    said = io.StringIO()

    def sleep(seconds: float) -> None:
        raise KeyboardInterrupt

    status.watch(Console(file=said, width=80, height=24, force_terminal=True), live=True, sleep=sleep)
    text = said.getvalue()
    assert "aaaaaa" in text
    assert "bbbbbb" in text
    assert text.rindex(SHOW) > text.rindex(HIDE)
