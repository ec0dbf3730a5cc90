"""What both phases of the probe share: a device's links of a slot, their port, and the thread that sends meanwhile."""

import threading
from collections.abc import Callable
from typing import Any

from testbed.calibration import LinkPlan

__all__ = ["PORT", "TIMEOUT_S", "Sender", "own_links"]

PORT = 29400
TIMEOUT_S = 60.0


def own_links(links: list[LinkPlan], device: str) -> tuple[LinkPlan | None, LinkPlan | None]:
    """Return the link that ends at the device and the one that begins there, of those in a slot."""
    incoming = next((link for link in links if link.destination == device), None)
    return incoming, next((link for link in links if link.source == device), None)


class Sender(threading.Thread):
    """A thread whose failure is raised by `finish`."""

    def __init__(self, run: Callable[..., None], *arguments: Any):
        super().__init__(daemon=True)
        self._work, self._arguments = run, arguments
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Work, and keep the error if there is one."""
        try:
            self._work(*self._arguments)
        except OSError as error:
            self._error = error

    def finish(self) -> None:
        """Wait for the end and raise what went wrong."""
        self.join(TIMEOUT_S)
        if self._error is not None:
            raise self._error
