"""What docs/ci.md and the workflow show is sound: YAML loads, commands and options exist, tests pass."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from testbed.cli import app
from testbed.pytest_plugin import missing, runnable

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "smoke.yml"
PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = (["run"], ["sweep", "run"], ["sweep", "merge"], ["doctor"])


def read(text: str) -> dict[str, Any]:
    tree: dict[str, Any] = YAML(typ="safe", pure=True).load(text)
    return tree


def lines() -> list[str]:
    """Every shell line that is shown."""
    jobs = [*read(WORKFLOW.read_text())["jobs"].values()]
    shown = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    for kind, text in BLOCKS:
        shown += text.splitlines() if kind == "sh" else []
        shown += [line for job in read(text).values() for line in job["script"]] if kind == "yaml" else []
    return shown


def test_workflow_has_jobs_that_lead_to_one_another() -> None:
    jobs = read(WORKFLOW.read_text())["jobs"]
    assert set(jobs) == {"smoke", "sweep", "merge"}
    for job in jobs.values():
        assert job["timeout-minutes"] <= 60
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
        assert job.get("needs") in (None, *jobs)


def test_shown_lines_name_files_and_options_that_exist(pytestconfig: pytest.Config) -> None:
    shown = lines()
    assert len(shown) > 10
    named = {word for line in shown for word in re.findall(r"\b(?:scenarios|tests|images)/[\w./-]+", line)}
    assert len(named) >= 3
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    known = "".join(CliRunner().invoke(app, [*command, "--help"]).output for command in COMMANDS)
    known += "--testbed-require --testbed-results --testbed-runtime --junit-xml"
    used = {word for line in shown if "testbed" in line for word in re.findall(r"(?<=\s)--[\w-]+", line)}
    assert len(used) >= 6
    assert [word for word in sorted(used) if word not in known] == []
    for option in re.findall(r"^\| `--(testbed-[\w-]+)", PAGE, re.MULTILINE):
        pytestconfig.getoption(option.replace("-", "_"))  # raises ValueError where there is none


def fake_run(line: list[str], folder: Path) -> tuple[int, str]:
    """End well, with figures that are as good as the page asks for."""
    out = Path(line[line.index("--out") + 1])
    common = {"latency_p95_s": 1.0, "bytes_per_request_counted": 80_000}
    rows = [{"strategy": "astra", "latency_p50_s": 1.0, "speedup_vs_single": 3.0, **common}]
    rows += [{"strategy": "sequence", "latency_p50_s": 2.0, "speedup_vs_single": 1.5, **common}]
    summary = {"status": "ok", "error": None, "expectations": [], "rows": rows}
    (out / "summary.json").write_text(json.dumps(summary))
    (out / "requests.csv").write_text("strategy,attempts\nastra,1\n")
    return 0, ""


def test_shown_tests_run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runnable, "_run_tied", fake_run)
    monkeypatch.setattr(missing, "_shortcomings", lambda need: ())
    (module,) = (text for kind, text in BLOCKS if kind == "python")
    path = pytester.makepyfile(module)
    options = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-o", "addopts=", "--rootdir", str(ROOT)]
    pytester.runpytest(*options, str(path)).assert_outcomes(passed=3)
