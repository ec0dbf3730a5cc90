"""What links carry at this moment, read from outside: the kernel's counters in a device's network namespace.

    agent's process id --setns, in a thread of its own--> two netlink sockets of that namespace, kept open
                       └─> classes (bytes, rate, full queues) and counters (lost) of every link that ends there

The sockets stay in the namespace in which they were opened, whoever reads them, so the device's own CPU share is not
touched. Changes nothing. Without the privilege to enter a namespace, nothing can be read.
"""

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from testbed.shaper.kernel import interface_index
from testbed.shaper.netlink import ClassState, KernelReader
from testbed.shaper.nft import TABLE
from testbed.shaper.plan import IFB, UNKNOWN_MINOR, UNSHAPED_RATE

__all__ = ["LinkMeter", "LinkNow"]

CLONE_NEWNET = 0x40000000
MINOR = 0xFFFF


@dataclass(frozen=True)
class LinkNow:
    """One link: bit/s since the last look (None at the first), what it may carry, packets lost since it was made."""

    source: str
    destination: str
    rate_bps: float | None
    limit_bps: float | None
    lost: int
    overflowed: int


class LinkMeter:
    """Looks again and again at the links that end at a device, whose agent has this process id."""

    def __init__(self, pid: int, destination: str, devices: Sequence[str]):
        self._pid, self._destination = pid, destination
        self._sources = [name for name in devices if name != destination]
        self._reader: KernelReader | None = None
        self._index = 0
        self._before: dict[str, tuple[float, int]] = {}

    def look(self) -> list[LinkNow]:
        """Read all links; empty where there are none yet, or they cannot be seen."""
        try:
            states = self._classes()
            if not states:  # the rules were made anew, on an interface of another number
                self._open()
                states = self._classes()
            losses = self._reader.nft_counters(TABLE) if self._reader is not None and states else {}
        except OSError:
            return []
        now = time.monotonic()
        numbered = ((state.handle & MINOR, state) for state in states)
        return [
            self._link(number, state, now, losses) for number, state in numbered if 0 < number <= len(self._sources)
        ]

    def close(self) -> None:
        """Give the sockets up; as long as they are open, their namespace stays; idempotent."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _classes(self) -> list[ClassState]:
        if self._reader is None or not self._index:
            return []
        found = self._reader.classes(self._index)
        return sorted(
            (state for state in found if state.handle & MINOR != UNKNOWN_MINOR), key=lambda state: state.handle
        )

    def _link(self, number: int, state: ClassState, now: float, losses: dict[str, int]) -> LinkNow:
        source = self._sources[number - 1]
        at, count = self._before.get(source, (now, 0))
        self._before[source] = (now, state.bytes)
        new = now <= at or state.bytes < count
        return LinkNow(
            source=source,
            destination=self._destination,
            rate_bps=None if new else 8 * (state.bytes - count) / (now - at),
            limit_bps=None if state.rate >= UNSHAPED_RATE else 8.0 * state.rate,
            lost=losses.get(f"lost_{number}", 0),
            overflowed=state.drops,
        )

    def _open(self) -> None:
        """Open the sockets in the device's namespace, by a thread that goes there and ends."""
        self.close()
        self._before.clear()
        opener = threading.Thread(target=self._open_there)
        opener.start()
        opener.join()

    def _open_there(self) -> None:
        with contextlib.suppress(OSError):
            namespace = os.open(f"/proc/{self._pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                # os.setns is newer than Python 3.11. It moves this thread alone.
                if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET) != 0:
                    return
            finally:
                os.close(namespace)
            self._index = next(iter(interface_index(IFB)), 0)
            self._reader = KernelReader()
