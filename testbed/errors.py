"""What can go wrong in `testbed`, as one tree.

    TestbedError                exit code 1: the run failed
    ├── InputError              exit code 2: a file or argument is wrong; holds every fault found
    ├── UnsupportedError        exit code 2: this machine or kernel cannot do what was asked
    ├── ShaperError             the kernel refused or did not keep a link rule
    ├── RuntimeFailureError     namespaces, containers or cgroups could not be made or removed
    ├── DeviceError             a device died, its program failed, or it never reported
    ├── CalibrationError        a link measured outside its tolerance
    └── InterruptError          the user or a signal ended the run

Messages read `<where>: <field> must be <rule>, got <value!r>; <what to do>`.
"""

from collections.abc import Sequence

__all__ = [
    "CalibrationError",
    "DeviceError",
    "InputError",
    "InterruptError",
    "RuntimeFailureError",
    "ShaperError",
    "TestbedError",
    "UnsupportedError",
]


class TestbedError(Exception):
    """Any failure that `testbed` reports in its own words."""

    __test__ = False  # pytest takes any class called Test… for a test
    exit_code = 1


class InputError(TestbedError):
    """Bad input; `faults` lists every fault, one line each."""

    exit_code = 2

    def __init__(self, faults: Sequence[str]):
        self.faults = tuple(faults)
        super().__init__("\n".join(self.faults))


class UnsupportedError(TestbedError):
    """This machine cannot do what the scenario asks; the message says what is missing and the way out."""

    exit_code = 2


class ShaperError(TestbedError):
    """A qdisc, class, filter or nftables rule could not be set, or read back different from what was asked."""


class RuntimeFailureError(TestbedError):
    """Namespaces, containers or cgroups could not be made or removed."""


class DeviceError(TestbedError):
    """A device never reported, its agent vanished, or its program failed."""


class CalibrationError(TestbedError):
    """A link measured outside its tolerance."""


class InterruptError(TestbedError):
    """The user or a signal ended the run; what it made has been removed and the record says so."""
