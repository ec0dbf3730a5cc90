"""Put what may not wait before other programs of the machine, where that is allowed.

`go_first` is for a thread that is often due; `urgent` for the moment in which it is, and for tools that are started in
it. Not for longer: of two urgent ones on one core the second waits for the first.
"""

import contextlib
import os
import threading
from collections.abc import Iterator

__all__ = ["go_first", "urgent"]

FIRST = -20
"""The niceness of what may not wait."""


def go_first() -> None:
    """Give this thread, and what it starts, the largest share of the processor."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), FIRST)


@contextlib.contextmanager
def urgent() -> Iterator[None]:
    """Run this thread, and what it starts, as soon as it can run."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
