"""A sweep over containers: cells that differ in links share them, figures are read from what programs print."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML
from test_docker_run import ours
from whole_runs import cli, write

from testbed import load_results

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]

RATES = [10, 40]
RATE_TOLERANCE = 0.25
"""For a megabyte over TCP, of a program that others keep from running."""
PROGRAM = """
import json, os, socket, time
if os.environ["RANK"] == "0":
    line = socket.create_server(("", 5000)).accept()[0]
    line.recv(1 << 20, socket.MSG_WAITALL); line.sendall(b"!")
else:
    for attempt in range(100):
        try:
            line = socket.create_connection((os.environ["MASTER_ADDR"], 5000)); break
        except OSError:
            time.sleep(0.1)
    began = time.monotonic(); line.sendall(bytes(1 << 20)); line.recv(1)
    print(json.dumps({"sent": {"mbps": 8.388608 / (time.monotonic() - began), "host": socket.gethostname()}}))
"""


def test_cells_share_containers_and_programs_figures_reach_the_results(place: Path) -> None:
    """The host's name is the container's own, so containers that were made anew would have another."""
    command = ["python", "-c", PROGRAM]
    write(place, command, workload={"command": command, "summary": {"mbps": "sent.mbps", "host": "sent.host"}})
    with (place / "sweep.yaml").open("w") as file:
        sweep = {
            "name": "rates",
            "base": "scenario.yaml",
            "matrix": {"links.default.rate_mbps": RATES},
            "show": ["mbps"],
        }
        YAML(typ="safe").dump(sweep, file)
    done = cli(
        place, "sweep", place / "sweep.yaml", "--out", place / "out", "--runtime", "docker", "--no-calibrate", "--plain"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    frame = load_results(place / "out").sort_values("links.default.rate_mbps")
    assert list(frame["mbps"].astype(float)) == pytest.approx(RATES, rel=RATE_TOLERANCE)
    assert frame["host"].nunique() == 1
    assert (place / "out" / "report.html").exists()
    assert ours() == []
