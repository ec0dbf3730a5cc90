"""What a terminal shows of real devices and links, and how it is left."""

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from whole_runs import TESTBED, cli, environment, start, wait_for_line, write

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]

HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"
"""The cursor."""
SEEN_WITHIN_S = 60.0
SENDING = """
import socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(300):
    sender.sendto(bytes(1400), ("10.77.0.2", 9))
"""
"""1.7 Mbps if it is seen two seconds after the look before."""


class Terminal:
    """What a command writes to a terminal of 80 columns."""

    def __init__(self, place: Path, *arguments: str | Path):
        leader, follower = pty.openpty()
        surroundings = {**environment(place), "COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
        line = ["env", "--default-signal=INT", *TESTBED, *map(str, arguments)]
        self.process = subprocess.Popen(
            line, cwd=place, env=surroundings, stdin=follower, stdout=follower, stderr=follower
        )
        os.close(follower)
        self.text = b""
        self._leader = leader
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._leader, 65536):
                self.text += data
        except OSError:  # the last that had it open has closed it
            pass

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + SEEN_WITHIN_S
        while text.encode() not in self.text:
            assert time.monotonic() < until, self.text.decode(errors="replace")
            time.sleep(0.05)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._leader)


def test_run_shows_links_and_gives_the_terminal_back_on_ctrl_c(place: Path) -> None:
    scenario = write(place, ["sleep", "60"])
    terminal = Terminal(place, "run", scenario, "--no-calibrate", "--out", place / "out")
    try:
        terminal.wait_for("d1→d0")
        terminal.wait_for("of 0.5")  # the limit of CPU, read from the control group
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(30) == 1
    finally:
        terminal.close()
    assert terminal.text.rindex(SHOW) > terminal.text.rindex(HIDE)
    said = terminal.text.decode()
    assert said.rindex("interrupted; what was measured") > said.rindex("memory")
    assert subprocess.run(["pgrep", "-f", str(place)], capture_output=True).stdout == b""


def test_status_watch_follows_a_network_until_it_is_down(place: Path) -> None:
    assert cli(place, "up", write(place, ["true"])).returncode == 0
    with start(place, "status", "--watch") as watching:
        wait_for_line(watching, "devices: 2 up")
        assert cli(place, "exec", "d0", "--", sys.executable, "-c", SENDING).returncode == 0
        assert watching.stdout is not None
        carried = next(line for line in watching.stdout if not re.search(r"links: 0\.0 Mbps", line))
        assert re.search(r"2 links: [0-9.]+ Mbps, 0 lost, 0 overflowed", carried)
        assert cli(place, "down").returncode == 0
        said = watching.stdout.read()
    assert watching.returncode == 0
    assert said.splitlines()[-1] == "nothing is up"
    assert "\x1b" not in said
