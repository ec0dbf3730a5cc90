"""The pytest plugin as far as nothing is run: what tests are given, told and refused, and what a run is tied to."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from testbed.pytest_plugin import (
    RunResult,
    assert_agreement,
    assert_bytes,
    assert_faster,
    assert_latency,
    assert_metric,
    assert_speedup,
    missing,
    runnable,
)
from testbed.scenario import load

pytest_plugins = ["pytester"]

SCENARIO = """
name: weak
devices: {count: 2, cpus: 0.5}
links: {default: {rate_mbps: 10}}
workload: {command: ["true"]}
"""
HEAVY = ("torch", "pandas", "numpy", "pydantic", "zmq", "docker", "ruamel.yaml", "matplotlib", "rich", "typer")
QUICKLY = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
"""Without what takes a second of each of the small suites below."""
END_S = 20.0
"""For a process to notice that another has gone, on a machine that has others to serve."""

Lines = list[list[str]]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Lines:
    """Let runs end well at once, with a rate for a measurement, and return their command lines."""
    lines: Lines = []

    def fake(line: list[str], folder: Path) -> tuple[int, str]:
        lines.append(line)
        scenario = load(Path(line[4]))
        row = {"strategy": "astra", "speedup_vs_single": scenario.links.default.rate_mbps}
        summary = {"status": "ok", "error": None, "expectations": [], "rows": [row]}
        (Path(line[6]) / "summary.json").write_text(json.dumps(summary))
        return 0, "all is well\n"

    monkeypatch.setattr(runnable, "_run_tied", fake)
    monkeypatch.setattr(missing, "_shortcomings", lambda need: ())
    return lines


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    why = {
        "netns": ("privileges (neither root nor user namespaces): run as root",),
        "limits": ("limits (none): root",),
        "delays": ("kernel sch_netem (delays): modprobe",),
    }
    monkeypatch.setattr(missing, "_shortcomings", lambda need: why.get(need, ()))


@pytest.fixture
def suite(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """A function that runs a test module beside weak.yaml."""

    def go(module: str, *options: str) -> pytest.RunResult:
        (pytester.path / "weak.yaml").write_text(SCENARIO)
        pytester.makepyfile(f"import pytest\nfrom testbed.pytest_plugin import *\n{module}")
        return pytester.runpytest(*QUICKLY, "--strict-markers", *options)

    return go


def test_plugin_loads_without_anything_that_takes_time() -> None:
    program = f"import sys, testbed.pytest_plugin.hooks; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_installed_package_brings_the_plugin(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.has_plugin("testbed")


MARKED = """
@pytest.mark.scenario("weak.yaml", {"links.default.rate_mbps": 5, "links.default.loss_pct": 2}, uncapped=True)
def test_marked(scenario):
    assert scenario.scenario.links.default.loss_pct == 2
    assert_speedup(scenario.run(), "astra", at_least=5)
    assert_speedup(scenario.run({"links.default.rate_mbps": 7}), "astra", at_least=8)
"""


def test_mark_gives_a_scenario_that_can_be_changed_and_run(suite: Callable[..., pytest.RunResult], runs: Lines) -> None:
    result = suite(MARKED, "--testbed-results=kept")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*speedup_vs_single (strategy=astra) must be at least 8, got 7", "E*kept*-2"])
    first, second = (Path(line[6]) for line in runs)
    assert first.parent.name == "kept"
    assert "test_marked" in first.name
    assert second.name == f"{first.name}-2"
    assert runs[0][7:] == ["--runtime", "netns", "--plain", "--end-with-stdin", "--calibrate", "--uncapped"]


MADE = """
from pathlib import Path
from testbed.scenario import load
TREE = {"name": "t", "devices": {"count": 1}, "workload": {"command": ["true"]}}

@pytest.fixture(scope="module")
def result(make_scenario):
    return make_scenario(TREE, {"links.default.rate_mbps": 3}, go_on=True, calibrate=False, timeout_s=5.0).run()

@pytest.fixture
def scenario(make_scenario):
    return make_scenario(load(Path("weak.yaml")), runtime="docker")

def test_one(result):
    assert result.ok and result.status == "ok" and result.row(strategy="astra")["speedup_vs_single"] == 3

def test_other(result):
    assert_metric(result, "speedup_vs_single", equals=3.0)

def test_own(scenario):
    assert scenario.run().summary[0]["speedup_vs_single"] == 10
"""


def test_fixtures_make_scenarios_and_share_runs(suite: Callable[..., pytest.RunResult], runs: Lines) -> None:
    suite(MADE).assert_outcomes(passed=3)
    assert [line[8] for line in runs] == ["netns", "docker"]
    assert runs[0][-4:] == ["--no-calibrate", "--go-on", "--timeout-s", "5.0"]


MISTAKES = {
    "": "must be marked @pytest.mark.scenario",
    '@pytest.mark.scenario("none.yaml")': "none.yaml: the file must be readable",
    '@pytest.mark.scenario("weak.yaml", {"devices.count": 0})': "weak.yaml: devices.count must be a whole number",
    '@pytest.mark.scenario("weak.yaml", {"name.x": 0})': "weak.yaml: name.x must be a path into",
    '@pytest.mark.scenario("weak.yaml", runtime="vm")': "runtime: must be netns or docker, got 'vm'",
    '@pytest.mark.scenario("weak.yaml", speed=1)': "unexpected keyword argument 'speed'",
}
"""Marks, and what is said to them."""


@pytest.mark.usefixtures("runs")
def test_mistakes_are_errors_that_say_what_to_do(suite: Callable[..., pytest.RunResult]) -> None:
    result = suite("\n".join(f"{mark}\ndef test_{n}(scenario):\n    pass\n" for n, mark in enumerate(MISTAKES)))
    result.assert_outcomes(errors=len(MISTAKES))
    said = result.stdout.str()
    assert [fault for fault in MISTAKES.values() if fault not in said] == []


PLAIN = """
@pytest.mark.scenario("weak.yaml")
def test_a(scenario):
    pass

@pytest.mark.scenario("weak.yaml", {"links.overrides": [{"from": "d1", "to": "d0", "delay_ms": 5}]}, uncapped=True)
def test_b(scenario):
    pass
"""


@pytest.mark.usefixtures("lacking")
def test_what_the_machine_lacks_skips_by_name(suite: Callable[..., pytest.RunResult]) -> None:
    result = suite(PLAIN, "-rs")
    result.assert_outcomes(skipped=2)
    said = result.stdout.str()
    privileges = "missing for scenario weak: privileges (neither root nor user namespaces): run as root"
    assert f"{privileges}; limits (none): root" in said
    assert said.count("limits (none)") == 1  # uncapped needs none
    assert said.count("kernel sch_netem") == 1


@pytest.mark.usefixtures("lacking")
def test_what_is_required_fails_instead(suite: Callable[..., pytest.RunResult]) -> None:
    result = suite(PLAIN, "--testbed-require")
    result.assert_outcomes(errors=2)


def test_run_that_failed_fails_the_test_and_says_why(
    suite: Callable[..., pytest.RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missing, "_shortcomings", lambda need: ())
    monkeypatch.setattr(runnable, "_run_tied", lambda line, folder: (2, "starting\nworkload.check: must be better\n"))
    result = suite('@pytest.mark.scenario("weak.yaml")\ndef test_a(scenario):\n    scenario.run()\n')
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*scenario weak: testbed run ended with exit code 2", "*check: must be better"])
    assert "runnable.py" not in result.stdout.str()  # the test's own line is what matters


@pytest.fixture
def measured(tmp_path: Path) -> RunResult:
    return RunResult(write_run(tmp_path / "run"), 0, "")


def test_assertions_hold_where_the_figures_do(measured: RunResult) -> None:
    astra_s = float(measured.row(strategy="astra")["latency_p50_s"] or 0)
    single_s = float(measured.row(strategy="single")["latency_p50_s"] or 0)
    assert_latency(measured, "astra", at_most_s=astra_s)
    assert_speedup(measured, "astra", at_least=3, where={"settings": "G=1"})
    assert_faster(measured, "astra", than="single", by=0.99 * single_s / astra_s)
    assert_bytes(measured, "astra", at_most=200_000)
    assert len(measured.table("requests")) == 25
    assert measured.log("d0") == "ready\n"
    assert measured.log("d9") == ""


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (lambda run: assert_latency(run, "astra", at_most_s=0.1, percentile=95), "latency_p95_s (strategy=astra)"),
        (lambda run: assert_speedup(run, "sequence", at_least=1), "must be at least 1, got 0.3807, 1.139"),
        (lambda run: assert_speedup(run, "none", at_least=1), "got no such row in the summary"),
        (
            lambda run: assert_faster(run, "sequence", than="single"),
            "latency_p50_s (strategy=sequence) must be at most",
        ),
        (lambda run: assert_faster(run, "astra", than="none"), "known here: astra, prism, sequence, single"),
        (lambda run: assert_bytes(run, "astra", at_most=1), "bytes_per_request_counted"),
        (lambda run: assert_agreement(run, "astra", at_least_pct=99), "must be at least 99, got None"),
        (lambda run: assert_metric(run, "requests", equals=4), "requests (all rows) must be 4, got 5, 5"),
    ],
)
def test_assertions_say_what_was_measured(measured: RunResult, claim: Callable[[RunResult], Any], said: str) -> None:
    with pytest.raises(AssertionError) as caught:
        claim(measured)
    assert said in str(caught.value)
    assert str(measured.folder) in str(caught.value)


def test_result_names_what_there_is(measured: RunResult) -> None:
    with pytest.raises(LookupError, match=r"got 2 for .*sequence.*rows: strategy=single"):
        measured.row(strategy="sequence")
    with pytest.raises(FileNotFoundError, match=r"table: must be one of calibration, events, links, requests, summary"):
        measured.table("none")


TIED = """
import sys, time
from pathlib import Path
from testbed.pytest_plugin import runnable
program = "import sys; print('begun', flush=True); sys.stdin.read(); open('ended', 'w').close()"
runnable._run_tied([sys.executable, "-c", program], Path(sys.argv[1]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_run_ends_with_whoever_started_it(tmp_path: Path, number: signal.Signals) -> None:
    line = ["env", "--default-signal=INT", sys.executable, "-uc", TIED, str(tmp_path)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        os.kill(process.pid, number)
    assert process.returncode != 0
    deadline = time.monotonic() + END_S
    while not (tmp_path / "ended").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
