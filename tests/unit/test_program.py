"""A program on a device: started without privileges, heard, stopped with its children."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from testbed.errors import DeviceError
from testbed.program import Program, without_privileges

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="missing: root, for setpriv to drop the bounding set")


async def run(command: list[str], folder: Path, seconds: float = 10.0) -> tuple[int, list[tuple[str, str]], Program]:
    heard: list[tuple[str, str]] = []

    async def on_line(stream: str, line: str) -> None:
        heard.append((stream, line))

    program = await Program.start(command, environment=dict(os.environ), folder=str(folder), on_line=on_line)
    return await asyncio.wait_for(program.wait(), seconds), heard, program


def test_program_is_heard_line_by_line(tmp_path: Path) -> None:
    code, heard, program = asyncio.run(run(["sh", "-c", "echo out; echo err >&2; printf last; exit 3"], tmp_path))
    assert code == 3
    assert sorted(heard) == [("stderr", "err"), ("stdout", "last"), ("stdout", "out")]
    assert set(program.last_lines) == {"out", "err", "last"}


def test_program_has_no_capabilities_and_cannot_gain_any(tmp_path: Path) -> None:
    _, heard, _ = asyncio.run(run(["cat", "/proc/self/status"], tmp_path))
    status = dict(line.split(":\t", 1) for _, line in heard if ":\t" in line)
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"


def test_program_runs_as_the_user_asked_for() -> None:
    assert without_privileges(["id"], 1000, 1001)[1:6] == ["--reuid", "1000", "--regid", "1001", "--init-groups"]


def test_program_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="must name a program on the device, got 'no-such-program'"):
        asyncio.run(run(["no-such-program"], tmp_path))


def test_program_death_by_signal_is_negative(tmp_path: Path) -> None:
    code, _, _ = asyncio.run(run(["sh", "-c", "kill -KILL $$"], tmp_path))
    assert code == -signal.SIGKILL


def test_program_end_takes_its_children_along(tmp_path: Path) -> None:
    code, heard, _ = asyncio.run(run(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"], tmp_path))
    child = int(heard[0][1])
    assert code == 0
    for _ in range(100):
        if not Path(f"/proc/{child}").exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"child {child} is still there")


def test_program_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    async def scenario() -> int:
        started = asyncio.Event()

        async def on_line(stream: str, line: str) -> None:
            started.set()

        script = (
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
        )
        program = await Program.start(
            [sys.executable, "-c", script], environment=dict(os.environ), folder=str(tmp_path), on_line=on_line
        )
        end = asyncio.create_task(program.wait())
        await asyncio.wait_for(started.wait(), 10)
        await program.stop(grace_s=0.2)
        return await asyncio.wait_for(end, 5)

    assert asyncio.run(scenario()) == -signal.SIGKILL


def test_program_survives_a_line_without_end(tmp_path: Path) -> None:
    script = "import sys; sys.stdout.write('x' * (3 << 20) + '\\nafter\\n')"
    code, heard, _ = asyncio.run(run([sys.executable, "-c", script], tmp_path))
    assert code == 0
    assert heard[-1] == ("stdout", "after")
    assert any("left out" in line for _, line in heard)
