"""`testbed run --junit FILE`: how a run ended, as a file that CI servers show as tests.

    <scenario>.run      runs to its end; links are as asked
    <scenario>.summary  a case for each row of the summary (a strategy, say): its figures; latency as the case's time
    <scenario>.expect   a case for each expectation: not met is a failure, whose text says what was measured

Names hold no measurement, so that a server recognises a case in the next run, and each stands once: GitLab shows one
case a name. Form: JUnit XML as Jenkins' schema (junit-10.xsd) has it and GitLab's parser reads it. Does not judge.
"""

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from testbed import probe
from testbed.display import format_value, heading
from testbed.errors import InputError, TestbedError
from testbed.expect import Verdict
from testbed.record import Row
from testbed.workload import invoking_user

__all__ = ["Case", "Suite", "kept"]

RUNS_TO_ITS_END = "runs to its end"
LATENCY = "latency_p50_s"
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""


@dataclass(frozen=True)
class Case:
    """One line of a CI server's list of tests."""

    group: Literal["run", "summary", "expect"]
    name: str
    time_s: float = 0.0
    outcome: Literal["passed", "failure", "error"] = "passed"
    kind: str = ""
    """What kind of failure or error it is."""
    text: str = ""
    """Why it did not pass; of one that passed, what is worth knowing."""


@dataclass
class Suite:
    """What there is to say of a run, up to now."""

    name: str
    cases: list[Case] = field(default_factory=list)
    _began: float = field(default_factory=time.time)

    def take(self, tables: Mapping[str, Sequence[Row]], verdicts: Sequence[Verdict]) -> None:
        """Take in a run that came to its end."""
        self.cases.append(Case("run", RUNS_TO_ITS_END, time.time() - self._began))
        if rows := tables.get("calibration", ()):
            self.cases.append(_case_of_links(rows))
        self.cases += [_case_of_row(row) for row in tables.get("summary", ())]
        self.cases += [_case_of_verdict(verdict) for verdict in verdicts]

    def fail(self, error: BaseException) -> None:
        """Take in what ended the run too early."""
        text = str(error) if isinstance(error, TestbedError) else repr(error)
        took_s = time.time() - self._began
        self.cases.append(Case("run", RUNS_TO_ITS_END, took_s, "error", type(error).__name__, text))

    def write(self, path: Path) -> None:
        """Write the file in one step, for the user on whose behalf the run was. Raises InputError if it cannot be."""
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_bytes(ElementTree.tostring(self._document(), encoding="utf-8", xml_declaration=True))
            identity = invoking_user()
            if identity.uid is not None:
                os.chown(partial, identity.uid, -1 if identity.gid is None else identity.gid)
            partial.rename(path)
        except OSError as error:
            rule = f"a file that can be written, got '{path}' ({error.strerror})"
            raise InputError([f"--junit: must be {rule}; name another"]) from error

    def _document(self) -> ElementTree.Element:
        took_s = f"{time.time() - self._began:.3f}"
        cases = _named_once(self.cases)
        counts = {
            "tests": str(len(cases)),
            "failures": str(sum(case.outcome == "failure" for case in cases)),
            "errors": str(sum(case.outcome == "error" for case in cases)),
        }
        root = ElementTree.Element("testsuites", {"name": "testbed", **counts, "time": took_s})
        began = datetime.fromtimestamp(self._began, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        about = {"name": _clean(self.name), **counts, "skipped": "0", "time": took_s, "timestamp": began}
        suite = ElementTree.SubElement(root, "testsuite", about)
        for case in cases:
            suite.append(self._element(case))
        ElementTree.indent(root)
        return root

    def _element(self, case: Case) -> ElementTree.Element:
        about = {"classname": f"{self.name}.{case.group}", "name": case.name, "time": f"{case.time_s:.3f}"}
        element = ElementTree.Element("testcase", {key: _clean(value) for key, value in about.items()})
        if case.outcome != "passed":
            why = {"message": _clean(case.text.partition("\n")[0]), "type": case.kind}
            ElementTree.SubElement(element, case.outcome, why).text = _clean(case.text)
        elif case.text:
            ElementTree.SubElement(element, "system-out").text = _clean(case.text)
        return element


@contextlib.contextmanager
def kept(path: Path | None, name: str) -> Iterator[Suite]:
    """Yield a suite for a run, and write it to `path` however the block ends, unless that is None.

    Until then the file says that the run was cut off, which is right if nobody is left to say more. Raises InputError
    if the file cannot be written, before the block begins.
    """
    suite = Suite(name)
    if path is None:
        yield suite
        return
    replace(suite, cases=[Case("run", RUNS_TO_ITS_END, 0, "error", "killed", "the run was cut off")]).write(path)
    try:
        yield suite
    except BaseException as error:
        suite.fail(error)
        raise
    finally:
        suite.write(path)


def _case_of_links(rows: Sequence[Row]) -> Case:
    off = [probe.describe(row) for row in rows if not row["ok"]]
    if off:  # the run went on because it was told to
        return Case("run", "links are as asked", 0, "failure", "out of tolerance", "\n".join(off))
    return Case("run", "links are as asked", text=f"{len(rows)} measurements, all within tolerance")


def _case_of_row(row: Row) -> Case:
    names = {key: value for key, value in row.items() if isinstance(value, str) and not key.endswith("_digest")}
    figures = [
        f"{heading(key)}: {format_value(key, value)}" for key, value in row.items() if isinstance(value, int | float)
    ]
    latency_s = row.get(LATENCY)
    time_s = float(latency_s) if isinstance(latency_s, int | float) else 0.0
    return Case("summary", " ".join(filter(None, names.values())) or "row", time_s, text="\n".join(figures))


def _case_of_verdict(verdict: Verdict) -> Case:
    name = verdict.text.rpartition(", got ")[0] or verdict.text
    if verdict.met:
        return Case("expect", name, text=verdict.text)
    return Case("expect", name, 0, "failure", "not met", verdict.text)


def _named_once(cases: Sequence[Case]) -> list[Case]:
    """Number cases of one name: servers show the first only."""
    seen: Counter[tuple[str, str]] = Counter()
    named = []
    for case in cases:
        seen[case.group, case.name] += 1
        number = seen[case.group, case.name]
        named.append(case if number == 1 else replace(case, name=f"{case.name} ({number})"))
    return named


def _clean(text: str) -> str:
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)
