"""A scenario that can be run, in a process of its own: `testbed run`, tied to this one.

    path | mapping | Scenario --changes by dotted path--> Scenario --dump--> testbed run --end-with-stdin --> RunResult

Not in pytest's process: without root, a run lives in a user namespace; and whatever becomes of pytest, what the run
made is removed. When a test is interrupted or pytest is killed, the run's standard input ends, which it takes for a
Ctrl-C; when it is killed itself, the next start of `testbed` removes what it left. Every run has a network of its own,
so that the workers of pytest-xdist do not meet.
"""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from testbed.errors import InputError
from testbed.pytest_plugin.missing import missing_for
from testbed.pytest_plugin.result import RunResult
from testbed.scenario import Scenario, parse, resolve
from testbed.sweep.paths import PathError, parse_path, replaced
from testbed.yaml_file import read

__all__ = ["Options", "RunnableScenario", "make"]

END_WAIT_S = 30.0
"""For a run that was told to end, to remove its devices."""
SLUG_CHARACTERS = 80

Source = Scenario | Mapping[str, Any] | Path | str


@dataclass(frozen=True)
class Options:
    """How to run scenarios, apart from what they say."""

    folder: Path
    """What paths are relative to, and where programs start."""
    results: Path
    """Run folders are made here."""
    runtime: str = "netns"
    uncapped: bool = False
    calibrate: bool = True
    go_on: bool = False
    timeout_s: float | None = None
    require: bool = False
    """Fail, instead of skipping, where the machine lacks something."""

    def arguments(self) -> Iterator[str]:
        """Yield these as arguments of `testbed run`."""
        yield from ("--runtime", self.runtime, "--plain", "--end-with-stdin")
        yield "--calibrate" if self.calibrate else "--no-calibrate"
        if self.uncapped:
            yield "--uncapped"
        if self.go_on:
            yield "--go-on"
        if self.timeout_s is not None:
            yield from ("--timeout-s", str(self.timeout_s))


@dataclass(frozen=True)
class RunnableScenario:
    """What the fixture `scenario` gives a test."""

    scenario: Scenario
    """Resolved: all that the file extends and the changes say, defaults included."""
    options: Options
    name: str
    """Of its run folders; the test's, usually."""

    def run(self, changes: Mapping[str, Any] | None = None, *, check: bool = True) -> RunResult:
        """Run it to its end, with `changes` by dotted path, and return what was measured; may be done repeatedly.

        With `check`, the test fails if the run did, or did not meet what the scenario expects.
        """
        __tracebackhide__ = True
        scenario = _resolved(self.scenario, changes or {}, self.options.folder)
        out = _new_folder(self.options.results, self.name)
        with TemporaryDirectory(prefix="testbed-") as scratch:
            file = Path(scratch) / f"{scenario.name}.yaml"
            file.write_text(scenario.dump())
            line = [sys.executable, "-m", "testbed", "run", str(file), "--out", str(out), *self.options.arguments()]
            exit_code, output = _run_tied(line, self.options.folder)
        if not any(out.iterdir()):
            out.rmdir()
        result = RunResult(out, exit_code, output)
        if check and not result.ok:
            pytest.fail(f"scenario {scenario.name}: {result.reason()}\n{out}")
        return result


def make(source: Source, changes: Mapping[str, Any], options: Options, name: str) -> RunnableScenario:
    """Make a runnable scenario of a file, of plain values or of a Scenario.

    Skips the test, or fails it if so asked, where this machine cannot run it. Raises InputError with every fault.
    """
    __tracebackhide__ = True
    if options.runtime not in ("netns", "docker"):
        raise InputError([f"runtime: must be netns or docker, got {options.runtime!r}"])
    scenario = _resolved(source, changes, options.folder)
    lacking = missing_for(scenario, runtime=options.runtime, uncapped=options.uncapped)
    if lacking is not None:
        text = f"missing for scenario {scenario.name}: {lacking}"
        if options.require:
            pytest.fail(text, pytrace=False)
        pytest.skip(text)
    return RunnableScenario(scenario, options, name)


def _resolved(source: Source, changes: Mapping[str, Any], folder: Path) -> Scenario:
    if isinstance(source, str | Path):
        document = read(folder / source)
        return resolve(_changed(document.tree, changes, str(source)), document.origin)
    if isinstance(source, Scenario) and not changes:
        return source
    tree = source.model_dump(mode="json", by_alias=True) if isinstance(source, Scenario) else source
    where = folder / f"scenario {tree.get('name')}"
    return parse(_changed(tree, changes, where.name), str(where))


def _changed(tree: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    faults = []
    for path, value in changes.items():
        try:
            tree = replaced(tree, parse_path(path), value)
        except PathError as error:
            faults.append(f"{where}: {path} must be {error.must_be}, got {error.got}; {error.todo}")
    if faults:
        raise InputError(faults)
    return tree


def _new_folder(parent: Path, name: str) -> Path:
    """Make a folder that no other run has, whichever worker asks."""
    slug = re.sub(r"[^A-Za-z0-9.=-]+", "_", name)[-SLUG_CHARACTERS:].strip("_.") or "run"
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / (slug if number == 1 else f"{slug}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
        number += 1


def _run_tied(line: list[str], folder: Path) -> tuple[int, str]:
    """Run a program to its end; return its exit code and what it said, which is shown meanwhile."""
    process = subprocess.Popen(
        line,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that Ctrl-C comes to pytest alone, and from there once
    )
    said = []
    try:
        for text in process.stdout or ():
            said.append(text)
            sys.stdout.write(text)
        process.wait()
    finally:
        try:  # ends its standard input, and so the run, if it has not ended
            process.communicate(timeout=END_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    return process.returncode, "".join(said)
