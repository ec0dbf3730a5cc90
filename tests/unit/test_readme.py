"""Every command in the README is run: here, in another test, or by CI itself."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RUN_IN = ("netns/test_readme_commands.py", "unit/test_packaged.py", "unit/test_plan_command.py")
RUN_BY_CI = {"make test"}
RUN_BY_HAND_AND_TESTS = {"make demo": "tests/netns/test_readme_commands.py"}
"""`make demo` takes minutes; the test runs its Makefile line on the smoke scenario."""


def commands() -> list[str]:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.parametrize("command", commands())
def test_readme_command_is_run_by_a_test(command: str) -> None:
    covered = "".join((ROOT / "tests" / path).read_text() for path in RUN_IN)
    assert command in RUN_BY_CI | RUN_BY_HAND_AND_TESTS.keys() or command.removeprefix(".venv/bin/") in covered


def test_readme_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)#:]+)\)", text)
    assert targets
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert missing == []


def test_makefile_demo_runs_the_quickstart() -> None:
    assert "$(BIN)/testbed run scenarios/quickstart.yaml" in (ROOT / "Makefile").read_text()
