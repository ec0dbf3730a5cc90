"""One device's links as its agent has them in hand: what they are, what was counted on them, and what happens to them.

    Shape ──> shape ──────────────> Shaper, under a lock: the clock's thread changes links too
    Start ──> load_ahead, clock ──> EventClock ──rows, errors, from its thread──> whoever asked for the clock

Says nothing to the controller, and knows of programs only that events send them signals.
"""

import signal
import threading
from collections.abc import Callable

from testbed.errors import TestbedError
from testbed.event_clock import EventClock
from testbed.event_row import Row
from testbed.links import DeviceRules
from testbed.protocol.from_agents import LinkCount
from testbed.schedule import Schedule, losses_to_come, rules_at
from testbed.shaper import Shaper
from testbed.urgency import go_first

__all__ = ["DeviceLinks"]


class DeviceLinks:
    """The links that end at this device, on `interface`. Methods raise ShaperError."""

    def __init__(self, interface: str):
        self._shaper = Shaper(interface)
        self._shaping = threading.Lock()
        self._rules: DeviceRules | None = None

    def shape(self, rules: DeviceRules, schedule: Schedule, since_s: float) -> dict[str, str]:
        """Put in place what has become of `rules` after `since_s` of `schedule`; say how links are emulated."""
        with self._shaping:
            self._shaper.apply(rules_at(rules, schedule, since_s))
        self._rules = rules
        return self._shaper.mechanism()

    def counters(self) -> dict[str, LinkCount]:
        """Read the counts of every link, by source."""
        with self._shaping:
            counted = self._shaper.counters()
        return {
            source: LinkCount(bytes=count.bytes, packets=count.packets, lost=count.lost, overflowed=count.overflowed)
            for source, count in counted.items()
        }

    def load_ahead(self, schedule: Schedule) -> None:
        """Get the loss patterns ready that events will turn links to, before anything waits for them."""
        if self._rules is not None and schedule.links:
            go_first()  # for this thread only; the controller waits, and all devices do this at once
            with self._shaping:
                self._shaper.load_ahead(losses_to_come(self._rules, schedule))

    def clock(
        self,
        schedule: Schedule,
        since_s: float | None,
        *,
        signal_program: Callable[[signal.Signals], None],
        on_row: Callable[[Row], None],
        on_error: Callable[[TestbedError], None],
    ) -> EventClock | None:
        """Make the clock of a schedule, not begun yet; None where nothing happens. See `EventClock`."""
        if self._rules is None or schedule == Schedule():
            return None
        return EventClock(
            schedule,
            self._rules,
            self._shaper,
            lock=self._shaping,
            signal_program=signal_program,
            on_row=on_row,
            on_error=on_error,
            since_s=since_s,
        )

    def clear(self) -> None:
        """Take every rule out of the kernel."""
        self._shaper.clear()
