"""Put what may not wait before other programs of the machine."""

import contextlib
import os
import threading

__all__ = ["go_first"]

FIRST = -20
"""The niceness of what may not wait."""


def go_first() -> None:
    """Put this thread, and the tools that it starts, before other programs of the machine where that is allowed.

    Each change takes about a millisecond of processor time; late ones would make the network another than asked.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), FIRST)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
