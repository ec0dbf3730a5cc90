"""Control groups, on folders that look like version 1 and version 2."""

from pathlib import Path

import pytest

from testbed.errors import RuntimeFailureError, UnsupportedError
from testbed.runtimes.cgroups import DeviceGroups, Hierarchies, find_hierarchies

V1 = "cgroup /c/cpu cgroup rw,cpu 0 0\ncgroup /c/cpuacct cgroup rw,cpuacct 0 0\ncgroup /c/memory cgroup rw,memory 0 0\n"


def test_find_hierarchies_reads_version_1() -> None:
    assert find_hierarchies(V1, "") == Hierarchies(1, Path("/c/cpu"), Path("/c/memory"))


def test_find_hierarchies_reads_version_2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    mounts = f"cgroup2 {tmp_path} cgroup2 rw 0 0\n"
    assert find_hierarchies(mounts, "0::/\n") == Hierarchies(2, tmp_path, tmp_path)


def test_find_hierarchies_uses_the_delegated_group_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    own = tmp_path / "user.slice" / "mine"
    own.mkdir(parents=True)
    (own / "cgroup.controllers").write_text("cpu memory\n")
    mounts = f"cgroup2 {tmp_path} cgroup2 rw 0 0\n"
    assert find_hierarchies(mounts, "0::/user.slice/mine\n").cpu == own


def test_find_hierarchies_in_a_user_namespace_uses_the_delegated_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("testbed.runtimes.userns.inside", lambda: True)
    own = tmp_path / "mine"
    own.mkdir()
    for folder in (tmp_path, own):
        (folder / "cgroup.controllers").write_text("cpu memory\n")
    assert find_hierarchies(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n", "0::/mine\n").cpu == own


@pytest.mark.parametrize("mounts", ["", "cgroup /c/cpu cgroup rw,cpu 0 0\n", "cgroup2 /nowhere cgroup2 rw 0 0\n"])
def test_find_hierarchies_says_what_is_missing_and_the_way_out(mounts: str) -> None:
    with pytest.raises(UnsupportedError, match=r"controllers cpu and memory must be usable.*--uncapped"):
        find_hierarchies(mounts, "0::/\n")


def fill(group: Path, names: dict[str, str]) -> None:
    for name, content in names.items():
        (group / name).write_text(content)


@pytest.mark.parametrize(
    ("cpus", "quota", "period"), [(0.4, "4000", "10000"), (2.0, "20000", "10000"), (0.05, "5000", "100000")]
)
def test_limit_writes_version_1(tmp_path: Path, cpus: float, quota: str, period: str) -> None:
    groups = DeviceGroups("ab12", Hierarchies(1, tmp_path / "cpu", tmp_path / "memory"))
    (tmp_path / "cpu").mkdir()
    (tmp_path / "memory").mkdir()
    groups.create("d0")
    groups.limit("d0", cpus=cpus, memory_mb=3000)
    group = tmp_path / "cpu" / "testbed-ab12" / "d0"
    assert (group / "cpu.cfs_quota_us").read_text() == quota
    assert (group / "cpu.cfs_period_us").read_text() == period
    memory = tmp_path / "memory" / "testbed-ab12" / "d0" / "memory.limit_in_bytes"
    assert 3_000_000_000 - 65536 < int(memory.read_text()) <= 3_000_000_000


def test_limit_writes_version_2(tmp_path: Path) -> None:
    groups = DeviceGroups("ab12", Hierarchies(2, tmp_path, tmp_path))
    fill(tmp_path, {"cgroup.subtree_control": "cpu memory"})
    (tmp_path / "testbed-ab12").mkdir()
    fill(tmp_path / "testbed-ab12", {"cgroup.subtree_control": "cpu memory"})
    groups.create("d0")
    groups.limit("d0", cpus=0.4, memory_mb=None)
    assert (tmp_path / "testbed-ab12" / "d0" / "cpu.max").read_text() == "4000 10000"
    assert (tmp_path / "testbed-ab12" / "d0" / "memory.max").read_text() == "max"


def test_limit_failure_names_device_and_file(tmp_path: Path) -> None:
    groups = DeviceGroups("ab12", Hierarchies(1, tmp_path, tmp_path))
    groups.create("d0")
    (tmp_path / "testbed-ab12" / "d0" / "cpu.cfs_period_us").mkdir()
    with pytest.raises(RuntimeFailureError, match=r"device d0: .*cpu.cfs_period_us must take 10000"):
        groups.limit("d0", cpus=0.4, memory_mb=None)


def test_out_of_memory_reads_both_versions(tmp_path: Path) -> None:
    for version, name in ((1, "memory.oom_control"), (2, "memory.events")):
        groups = DeviceGroups(f"v{version}", Hierarchies(version, tmp_path, tmp_path))
        group = tmp_path / f"testbed-v{version}" / "d0"
        group.mkdir(parents=True)
        assert not groups.out_of_memory("d0")
        (group / name).write_text("low 0\noom_kill 1\n")
        assert groups.out_of_memory("d0")


def test_remove_is_idempotent_and_removes_only_its_own(tmp_path: Path) -> None:
    groups = DeviceGroups("mine", Hierarchies(1, tmp_path, tmp_path))
    (tmp_path / "testbed-other" / "d0").mkdir(parents=True)
    groups.create("d0")
    groups.remove()
    groups.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["testbed-other"]
