"""The variables that say who a rank is, and the exact words for those that are missing or wrong."""

from pathlib import Path

import pytest

from astra.environment import Environment
from astra.errors import ConfigError

GOOD = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
ADVICE = "`testbed run` and `torchrun` set it; by hand, set it for every process"


def test_environment_is_read_with_defaults():
    read = Environment.read(GOOD)
    assert (read.rank, read.world_size, read.master_addr, read.master_port) == (1, 4, "10.0.0.1", 29500)
    assert (read.out, read.num_threads) == (Path("astra-results"), None)


def test_environment_takes_threads_and_folder():
    read = Environment.read(GOOD | {"OMP_NUM_THREADS": "2", "TESTBED_OUT": "/tmp/out"})
    assert (read.out, read.num_threads) == (Path("/tmp/out"), 2)


def test_environment_takes_the_share_of_a_cpu():
    assert Environment.read(GOOD).cpus is None
    assert Environment.read(GOOD | {"TESTBED_CPUS": ""}).cpus is None
    assert Environment.read(GOOD | {"TESTBED_CPUS": "0.4"}).cpus == 0.4


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"RANK": "4"}, "RANK must be a number from 0 to 3, got '4'"),
        ({"RANK": "-1"}, "RANK must be a number from 0 to 3, got '-1'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a number from 1 to 255, got '0'"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE must be a number from 1 to 255, got 'four'"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT must be a port from 1 to 65535, got '99999'"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR must be the address of rank 0, got ''"),
        ({"TESTBED_CPUS": "0"}, "TESTBED_CPUS must be a number greater than 0, got '0'"),
        ({"TESTBED_CPUS": "half"}, "TESTBED_CPUS must be a number greater than 0, got 'half'"),
        ({"TESTBED_CPUS": "inf"}, "TESTBED_CPUS must be a number greater than 0, got 'inf'"),
        ({"OMP_NUM_THREADS": "0"}, "OMP_NUM_THREADS must be a number of at least 1, got '0'"),
    ],
)
def test_environment_fault_reads_exactly(changes: dict[str, str], fault: str):
    with pytest.raises(ConfigError) as caught:
        Environment.read(GOOD | changes)
    assert caught.value.faults == (f"environment: {fault}; {ADVICE}",)


def test_environment_names_every_missing_variable():
    with pytest.raises(ConfigError) as caught:
        Environment.read({})
    names = [fault.split()[1] for fault in caught.value.faults]
    assert sorted(names) == ["MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"]
    assert all("got nothing" in fault for fault in caught.value.faults)
