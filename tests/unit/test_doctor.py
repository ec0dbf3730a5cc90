"""The doctor tells what is there from what is missing, and how to get it; nothing here needs privileges."""

import subprocess
import sys
from pathlib import Path

import pytest

from testbed import doctor
from testbed.doctor import Finding
from testbed.errors import UnsupportedError
from testbed.runtimes.engine import Engine
from testbed.shaper import features


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_doctor_examines_this_machine() -> None:
    findings = by_name(doctor.examine())
    assert {"kernel", "privileges", "cpu and memory limits", "machine", "tcp congestion control"} <= findings.keys()
    for finding in findings.values():
        assert finding.detail
        assert finding.ok or finding.way_out


@pytest.mark.parametrize(("release", "ok"), [("6.18.44-x", True), ("4.18.0-1.el8", True), ("4.9.0", False)])
def test_doctor_compares_kernel_versions(release: str, ok: bool) -> None:
    assert doctor._kernel(release).ok is ok


def test_doctor_names_the_package_of_a_missing_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert features.missing_programs()["nft"] == "sets links up; install the package nftables"
    findings = by_name(list(doctor._programs()))
    assert not findings["program tc"].ok
    assert "iproute2" in findings["program tc"].way_out


def test_doctor_names_the_modules_of_missing_features(monkeypatch: pytest.MonkeyPatch) -> None:
    ways_out = {name: features.FEATURES[name].way_out() for name in ("sch_netem", "xt_NFQUEUE", "ifb")}
    monkeypatch.setattr(doctor, "missing_features", lambda: ways_out)
    findings = by_name(list(doctor._features()))
    assert {name for name, finding in findings.items() if not finding.ok} == {f"kernel {name}" for name in ways_out}
    assert "modprobe sch_netem" in findings["kernel sch_netem"].way_out
    assert "CONFIG_NET_SCH_NETEM" in findings["kernel sch_netem"].way_out


@pytest.mark.parametrize(("missing", "there"), [("sch_netem", "xt_NFQUEUE"), ("xt_NFQUEUE", "sch_netem")])
def test_doctor_needs_one_way_to_delay(monkeypatch: pytest.MonkeyPatch, missing: str, there: str) -> None:
    monkeypatch.setattr(doctor, "missing_features", lambda: {missing: features.FEATURES[missing].way_out()})
    findings = by_name(list(doctor._features()))
    assert all(finding.ok for finding in findings.values())
    assert findings[f"kernel {missing}"].detail.startswith(f"not there, nor needed: {there}")


def test_shortcomings_are_those_of_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ("sch_netem", "xt_NFQUEUE", "ifb")
    monkeypatch.setattr(
        doctor, "missing_features", lambda: {name: features.FEATURES[name].way_out() for name in absent}
    )
    monkeypatch.setattr(doctor, "missing_programs", dict)
    monkeypatch.setattr(doctor, "_privileges", lambda: Finding("privileges", False, "none", "run as root"))
    monkeypatch.setattr(doctor, "_groups", lambda: Finding("cpu and memory limits", False, "none", "run as root"))
    found = {need: [each.name for each in doctor.shortcomings(need)] for need in ("netns", "limits", "delays")}
    assert found["netns"] == ["privileges", "kernel ifb"]
    assert found["limits"] == ["cpu and memory limits"]
    assert found["delays"] == ["kernel sch_netem", "kernel xt_NFQUEUE"]


def test_doctor_reports_that_no_namespace_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "missing_programs", dict)
    monkeypatch.setattr(features, "_run", lambda command: [])
    assert list(features.missing_features()) == ["network namespaces"]


def test_doctor_says_how_to_go_on_without_control_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UnsupportedError("cgroups: /sys must be writable, got 'Permission denied'; pass --uncapped")

    monkeypatch.setattr(doctor, "find_hierarchies", refuse)
    finding = doctor._groups()
    assert (finding.ok, finding.way_out) == (False, "pass --uncapped")


def test_doctor_does_not_load_torch() -> None:
    script = "import sys, testbed.doctor, testbed.probe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_doctor_says_how_to_get_an_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    (finding,) = doctor._containers(has_gpu=False)
    assert not finding.ok
    assert f"at unix://{tmp_path}/none.sock, got [Errno 2]" in finding.detail
    assert finding.way_out.startswith("install Docker Engine 20.10 or newer")


@pytest.mark.parametrize(
    ("engine", "missing"),
    [
        (Engine("27.0.1", "2", True, ("astra-testbed:latest",)), set()),
        (Engine("19.03.8", "1", False, ()), {"docker engine", "device image", "gpu in containers"}),
    ],
)
def test_doctor_examines_the_engine(monkeypatch: pytest.MonkeyPatch, engine: Engine, missing: set[str]) -> None:
    monkeypatch.setattr(doctor, "inspect_engine", lambda: engine)
    monkeypatch.setattr(doctor, "_output", lambda *command: "v2.26.1-4")
    findings = by_name(list(doctor._containers(has_gpu=True)))
    assert {name for name, finding in findings.items() if not finding.ok} == missing


@pytest.mark.parametrize(("plugin", "ok"), [("2.26.1-4", True), ("v5.0.0", True), ("1.29.2", False), ("", False)])
def test_doctor_wants_the_second_compose(monkeypatch: pytest.MonkeyPatch, plugin: str, ok: bool) -> None:
    monkeypatch.setattr(doctor, "_output", lambda *command: "")
    assert doctor._compose(plugin).ok is ok
