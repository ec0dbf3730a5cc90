"""Do to whole devices what a scenario's events want of an engine, on the controller's own monotonic clock.

    events of a device --due--> Runtime.act --> news: Due, Done, Trouble --> Fleet, which brings restarted devices back

A thread for each device, since an engine takes its time; what is due while a device restarts waits until it is back.
Touches neither agents nor the record.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from testbed.device_action import DeviceAction
from testbed.errors import TestbedError
from testbed.schedule import DeviceEvent

__all__ = ["DeviceClock", "Done", "Due", "Trouble"]


@dataclass(frozen=True)
class Due:
    """Something is about to happen to a device: what it does from now on is no accident."""

    device: str
    action: DeviceAction


@dataclass(frozen=True)
class Done:
    """It has happened, by `applied_s` of the clock."""

    device: str
    event: DeviceEvent
    applied_s: float


@dataclass(frozen=True)
class Trouble:
    """It could not be done."""

    error: TestbedError


class DeviceClock:
    """The events of one program's run that `act` carries out."""

    def __init__(self, events: Mapping[str, Sequence[DeviceEvent]], act: Callable[[str, DeviceAction], None]):
        self._events = {device: tuple(own) for device, own in events.items() if own}
        self._act = act
        self._news: queue.SimpleQueue[Due | Done | Trouble] = queue.SimpleQueue()
        self._back = {device: threading.Event() for device in self._events}
        self._paused: set[str] = set()
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._began = 0.0

    def begin(self) -> None:
        """Start the clock now."""
        self._began = time.monotonic()
        self._threads = [threading.Thread(target=self._run, args=(device,), daemon=True) for device in self._events]
        for thread in self._threads:
            thread.start()

    def elapsed_s(self) -> float:
        """Return what the clock shows."""
        return time.monotonic() - self._began

    def news(self) -> Iterator[Due | Done | Trouble]:
        """Yield what has happened since the last call; waits for nothing."""
        while True:
            try:
                yield self._news.get_nowait()
            except queue.Empty:
                return

    def back(self, device: str) -> None:
        """Take note that a restarted device runs its program again."""
        self._back[device].set()

    def stop(self) -> None:
        """End it, however much is left, and resume what is paused; idempotent. Raises what the runtime raises."""
        self._ended.set()
        for event in self._back.values():
            event.set()
        for thread in self._threads:
            thread.join()
        while self._paused:
            self._act(self._paused.pop(), "resume")

    def _run(self, device: str) -> None:
        for event in self._events[device]:
            if self._ended.wait(max(0.0, event.at_s - self.elapsed_s())):
                return
            self._news.put(Due(device, event.action))
            try:
                self._act(device, event.action)
            except TestbedError as error:
                self._news.put(Trouble(error))
                return
            self._news.put(Done(device, event, self.elapsed_s()))
            (self._paused.add if event.action == "pause" else self._paused.discard)(device)
            if event.action == "restart":
                self._back[device].wait()
                self._back[device].clear()
