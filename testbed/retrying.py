"""Trying something again until it succeeds, for as long as may be: what another program still has to bring about."""

import time
from collections.abc import Callable
from typing import TypeVar

from testbed.errors import DeviceError

__all__ = ["retried"]

T = TypeVar("T")


def retried(
    attempt: Callable[[], T],
    *,
    while_raising: type[OSError],
    timeout_s: float,
    period_s: float,
    complaint: Callable[[OSError], str],
) -> T:
    """Return what `attempt` returns, once it no longer raises `while_raising`.

    Raises DeviceError with the `complaint` about that if it still does after `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return attempt()
        except while_raising as error:
            if time.monotonic() > deadline_s:
                raise DeviceError(complaint(error)) from error
            time.sleep(period_s)
