"""A container's limits are read alike from control groups of both versions."""

from pathlib import Path

import pytest

from testbed.own_limits import own_limits
from testbed.protocol.from_agents import Limits

LIMITED = Limits(cpus=0.4, memory_bytes=499998720)
UNLIMITED = Limits(cpus=None, memory_bytes=None)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({"cpu.max": "4000 10000", "memory.max": "499998720"}, LIMITED),
        ({"cpu.max": "max 100000", "memory.max": "max"}, UNLIMITED),
        (
            {
                "cpu/cpu.cfs_quota_us": "4000",
                "cpu/cpu.cfs_period_us": "10000",
                "memory/memory.limit_in_bytes": "499998720",
            },
            LIMITED,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "memory/memory.limit_in_bytes": "9223372036854771712"}, UNLIMITED),
        ({}, UNLIMITED),
    ],
    ids=["v2", "v2 unlimited", "v1", "v1 unlimited", "no control groups"],
)
def test_own_limits_are_read_from_both_versions(tmp_path: Path, files: dict[str, str], limits: Limits) -> None:
    assert own_limits(tree(tmp_path, files)) == limits
