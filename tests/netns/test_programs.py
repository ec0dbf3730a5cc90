"""Programs with nothing of ours in them, as the scenarios of scenarios/programs run them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from whole_runs import cli, run, table

from testbed.results import load as load_results
from testbed.scenario import Scenario, load

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "scenarios" / "programs"
PAYLOAD_SHARE = 1448 / 1514
"""Of a full frame, as links count it: Ethernet, IP and TCP headers with timestamps are the rest."""
ALL_REDUCE_TOLERANCE = 0.08
"""Above the formula: gloo's turns, and how late a busy machine runs four programs. Measured: 0.3 % to 1.4 %."""
EARLY_TOLERANCE = 0.02
"""Below the formula: the rate is within 1 %, and what a link sends at once after a pause."""
IPERF3_TOLERANCE = 0.03
"""Around the cap: iperf3 counts whole buffers of 128 KB, 2.7 % of what 10 Mbps carry in 4 s."""
COUNT_TOLERANCE = 0.02
"""Of bytes on a link around the formula: frames that are not full, acknowledgements, words, what meeting takes."""


def run_program(place: Path, name: str) -> tuple[Scenario, Path]:
    """Run a shipped scenario to its end, results in `out`; its expectations are met then."""
    (place / "scenarios").symlink_to(ROOT / "scenarios")
    path = PROGRAMS / f"{name}.yaml"
    done = cli(place, "run", path, "--out", place / "out", "--no-calibrate", "--timeout-s", "120", timeout=170)
    assert done.returncode == 0, done.stdout + done.stderr
    return load(path), place / "out"


def rate_bps(scenario: Scenario) -> float:
    rate_mbps = scenario.links.settings("d0", "d1").rate_mbps
    assert rate_mbps is not None
    return 1e6 * rate_mbps


def test_all_reduce_of_plain_torch_takes_what_the_ring_formula_says(place: Path) -> None:
    """Each of N ranks sends 2 (N - 1) / N of the tensor to the rank before it.

    Source: gloo/allreduce.cc (`ring`, the default of gloo::allreduce, which ProcessGroupGloo calls): a reduce-scatter
    and an all-gather, each passing N - 1 of N chunks on to rank - 1.
    """
    scenario, out = run_program(place, "all-reduce")
    count = scenario.devices.count
    share, goodput_bps = 2 * (count - 1) / count, PAYLOAD_SHARE * rate_bps(scenario)
    results = load_results(out)
    assert list(results["bytes"]) == [1 << 20, 4 << 20]
    assert set(results["device"]) == {"d0"}
    for row in results.to_dict("records"):
        formula_s = 8 * share * row["bytes"] / goodput_bps
        assert 1 - EARLY_TOLERANCE < row["seconds"] / formula_s < 1 + ALL_REDUCE_TOLERANCE, row
    repeats = 1 + 3  # the program's own default, after one to warm up
    ring_bytes = repeats * share * sum(results["bytes"]) / PAYLOAD_SHARE
    links = {(row["source"], row["destination"]): int(row["bytes"]) for row in table(out, "links")}
    for rank in range(count):
        before = (rank - 1) % count
        assert links[f"d{rank}", f"d{before}"] == pytest.approx(ring_bytes, rel=COUNT_TOLERANCE)
        assert links[f"d{before}", f"d{rank}"] < 0.05 * ring_bytes  # acknowledgements


@pytest.mark.skipif(
    shutil.which("iperf3") is None, reason="missing: the program iperf3 (Debian's package of that name)"
)
def test_iperf3_measures_the_cap_of_the_link(place: Path) -> None:
    scenario, out = run_program(place, "iperf3")
    (row,) = load_results(out).to_dict("records")
    assert row["received_bps"] == pytest.approx(PAYLOAD_SHARE * rate_bps(scenario), rel=IPERF3_TOLERANCE)
    assert row["device"] == "d1"
    printed: dict[str, Any] = json.loads((out / "logs" / "d1.log").read_text())
    assert printed["end"]["sum_received"]["bits_per_second"] == pytest.approx(row["received_bps"])
    assert printed["end"]["sender_tcp_congestion"] == "cubic"


def test_run_says_that_a_program_printed_nothing_of_what_the_summary_names(place: Path) -> None:
    command = ["echo", '{"seconds": 1}']
    done = run(place, command, count=1, workload={"command": command, "summary": {"seconds": "end.seconds"}})
    assert done.returncode == 0, done.stderr
    assert "workload.summary: no JSON object on stdout had all of end.seconds; see logs/" in done.stdout
