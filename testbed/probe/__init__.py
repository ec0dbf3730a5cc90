"""The calibration program: run on every device at once, it measures every directed link with real packets.

    slot by slot (see `calibration`), the links of a slot at the same time:
      receiver --P--> sender --1 byte--> receiver            round trip
      receiver --M n--> sender --pause, message--> receiver  completion of one message after idle
      receiver --B n--> sender --n bytes--> receiver         bulk rate
    and in the loss phase numbered datagrams, with the kernel's counters read before and after

A program like any other: it talks TCP and UDP, and to the device socket for rows, barriers and counters. A message is
timed from the sender's clock to the receiver's: CLOCK_MONOTONIC is one clock for all namespaces and containers of a
machine (time namespaces aside). It cannot measure links between machines.
"""

from testbed.calibration import Plan, describe, make_plan
from testbed.probe.program import main

__all__ = ["COMMAND", "Plan", "describe", "main", "make_plan"]

COMMAND = ("python3", "-m", "testbed.probe")
"""What to run on every device, with a Plan as its configuration: the device's own interpreter is first in its PATH."""
