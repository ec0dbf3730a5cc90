"""`--junit`: what CI servers read, which cases there are, and that a run which fails or is killed leaves a red one."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from testbed import junit
from testbed.cli import app
from testbed.errors import DeviceError, InputError
from testbed.expect import Verdict

ATTRIBUTES = {
    "testsuites": {"name", "time", "tests", "failures", "errors"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
    "testcase": {"name", "classname", "time"},
    "failure": {"type", "message"},
    "error": {"type", "message"},
    "system-out": set(),
}
"""Those of Jenkins' junit-10.xsd that we use; it refuses all that it does not name."""
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"testcase"},
    "testcase": {"failure", "error", "system-out"},
}
SECONDS = re.compile(r"[0-9]+\.[0-9]{3}")

SUMMARY = [
    {"strategy": "single", "settings": "", "latency_p50_s": 2.5, "answer_digest": "77"},
    {"strategy": "astra", "settings": "G=1", "latency_p50_s": 0.5, "speedup_vs_single": 5.0, "accuracy_pct": None},
    {"strategy": "astra", "settings": "G=1", "latency_p50_s": 0.6, "speedup_vs_single": 4.0, "accuracy_pct": None},
]
MET = Verdict(True, "speedup_vs_single (strategy=astra) must be at least 2, got 5, 4")
UNMET = Verdict(False, "latency_p50_s (strategy=single) must be at most 1, got 2.5")
UNTRUE = {
    "source": "d0",
    "destination": "d1",
    "metric": "rate_mbps",
    "asked": 10.0,
    "measured": 12.0,
    "tolerance": 0.1,
    "ok": False,
}


def read(path: Path) -> ElementTree.Element:
    """Read a file and hold it against what Jenkins' schema allows; counts must be those of the cases."""
    root = ElementTree.parse(path).getroot()
    assert root.tag == "testsuites"
    for element in root.iter():
        assert set(element.keys()) <= ATTRIBUTES[element.tag], element.tag
        assert {child.tag for child in element} <= CHILDREN.get(element.tag, set()), element.tag
        assert SECONDS.fullmatch(element.get("time", "0.000"))
    for element in (root, *root.findall("testsuite")):
        assert int(element.get("tests", "")) == len(list(element.iter("testcase")))
        assert int(element.get("failures", "")) == len(list(element.iter("failure")))
        assert int(element.get("errors", "")) == len(list(element.iter("error")))
    names = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
    assert len(set(names)) == len(names)  # GitLab shows the first of a name only
    return root


def case(root: ElementTree.Element, name: str) -> ElementTree.Element:
    (found,) = (element for element in root.iter("testcase") if element.get("name") == name)
    return found


def test_finished_run_has_a_case_for_each_row_and_each_expectation(tmp_path: Path) -> None:
    with junit.kept(tmp_path / "j.xml", "file") as suite:
        suite.name = "weak"
        suite.take({"summary": SUMMARY, "calibration": [{**UNTRUE, "ok": True}]}, [MET, UNMET])
    root = read(tmp_path / "j.xml")
    assert [(element.get("classname"), element.get("name")) for element in root.iter("testcase")] == [
        ("weak.run", "runs to its end"),
        ("weak.run", "links are as asked"),
        ("weak.summary", "single"),
        ("weak.summary", "astra G=1"),
        ("weak.summary", "astra G=1 (2)"),
        ("weak.expect", "speedup_vs_single (strategy=astra) must be at least 2"),
        ("weak.expect", "latency_p50_s (strategy=single) must be at most 1"),
    ]
    assert case(root, "astra G=1").get("time") == "0.500"
    said = case(root, "astra G=1").findtext("system-out", "")
    assert "speedup vs single: 5.00×" in said
    assert "accuracy" not in said
    failure = case(root, "latency_p50_s (strategy=single) must be at most 1").find("failure")
    assert failure is not None
    assert failure.get("message") == UNMET.text == failure.text


def test_links_that_are_untrue_are_a_failure_that_names_them(tmp_path: Path) -> None:
    with junit.kept(tmp_path / "j.xml", "s") as suite:
        suite.take({"calibration": [UNTRUE]}, [])
    text = case(read(tmp_path / "j.xml"), "links are as asked").findtext("failure")
    assert text == "link d0 to d1: rate_mbps must be 10 ± 0.1, got 12"


def test_run_that_fails_is_an_error_that_says_why_whatever_it_says(tmp_path: Path) -> None:
    message = "device d1: the program ended\n<&> \x1b[31m\x00 \ud800"
    with pytest.raises(DeviceError), junit.kept(tmp_path / "j.xml", "s"):
        raise DeviceError(message)
    error = case(read(tmp_path / "j.xml"), "runs to its end").find("error")
    assert error is not None
    assert (error.get("type"), error.get("message")) == ("DeviceError", "device d1: the program ended")
    assert (error.text or "").endswith("<&> \ufffd[31m\ufffd \ufffd")


def test_run_that_is_killed_leaves_a_file_that_says_so(tmp_path: Path) -> None:
    with junit.kept(tmp_path / "j.xml", "s"):
        error = case(read(tmp_path / "j.xml"), "runs to its end").find("error")
    assert error is not None
    assert error.text == "the run was cut off"


def test_file_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--junit: must be a file that can be written"), junit.kept(tmp_path, "s"):
        raise AssertionError("the run began")


def test_scenario_that_does_not_load_is_an_error_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: bad\n")
    line = ["run", str(tmp_path / "bad.yaml"), "--junit", str(tmp_path / "j.xml")]
    assert isinstance(CliRunner().invoke(app, line).exception, InputError)
    root = read(tmp_path / "j.xml")
    assert case(root, "runs to its end").get("classname") == "bad.run"
    assert "devices must be given" in (case(root, "runs to its end").findtext("error") or "")
