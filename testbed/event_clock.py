"""Carry a device's schedule out on its own monotonic clock, and report when each event really happened.

    Schedule --timeline--> due --sleep--> Shaper.change | signal --> read back --> row of the table `events`

Patterns of losses have been loaded and read back before (`Shaper.load_ahead`); those that found no room are when they
are due, and read back once there is time. The first change is prepared before `begin`.

A thread of the agent, so that no message keeps it waiting. Times in rows are seconds since `begin`: `intended_s` by the
scenario, `applied_s` when the kernel had been told, `acknowledged_s` when it had answered with what was asked.
"""

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from testbed.device_action import DeviceAction
from testbed.errors import TestbedError
from testbed.event_row import Row, event_row
from testbed.links import DeviceRules, LinkRule
from testbed.schedule import Moment, Schedule, timeline
from testbed.shaper import PreparedChange, Shaper
from testbed.urgency import go_first, urgent

__all__ = ["SIGNALS", "EventClock"]

IDLE_S = 0.5
"""Reading patterns back takes some 20 ms, more where they are dense: not while the next event is so near."""
SIGNALS: dict[DeviceAction, signal.Signals] = {
    "pause": signal.SIGSTOP,
    "resume": signal.SIGCONT,
    "kill": signal.SIGKILL,
}


class EventClock:
    """The schedule of one program's run. `lock` guards the shaper against its other users.

    What was due until `since_s` is passed over: it is in the kernel already. Raises ShaperError if the first change
    cannot be made.
    """

    def __init__(
        self,
        schedule: Schedule,
        rules: DeviceRules,
        shaper: Shaper,
        *,
        lock: AbstractContextManager[object],
        signal_program: Callable[[signal.Signals], None],
        on_row: Callable[[Row], None],
        on_error: Callable[[TestbedError], None],
        since_s: float | None = None,
    ):
        moments = timeline(rules, schedule)
        ahead = itertools.dropwhile(lambda moment: since_s is not None and moment.at_s <= since_s, moments)
        self._device, self._shaper, self._lock = rules.device, shaper, lock
        self._signal_program, self._on_row, self._on_error = signal_program, on_row, on_error
        self._groups = _together(ahead)
        self._first = next(self._groups, None)
        self._first_change = None if self._first is None else shaper.prepare(_changes(self._first[1]))
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.killed = False
        """Whether an event has killed the program."""

    def begin(self, elapsed_s: float = 0.0) -> None:
        """Start the clock, which shows `elapsed_s` now."""
        self._thread = threading.Thread(target=self._run, args=(time.monotonic() - elapsed_s,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the schedule, however much of it is left; idempotent."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        elif self._first_change is not None:
            self._first_change.cancel()
            self._first_change = None

    def _run(self, began: float) -> None:
        go_first()
        try:
            group, prepared = self._first, self._first_change
            while group is not None and prepared is not None:
                if not self._carry_out(*group, prepared, began):
                    return
                group = next(self._groups, None)
                if group is not None:
                    if began + group[0] - time.monotonic() > IDLE_S:
                        self._check_patterns()
                    prepared = self._shaper.prepare(_changes(group[1]))
            self._check_patterns()
        except TestbedError as error:
            self._on_error(error)

    def _carry_out(self, at_s: float, moments: Sequence[Moment], prepared: PreparedChange, began: float) -> bool:
        """Wait until a group of moments is due, and do what they say; return False if the schedule has ended."""
        latest = {rule.source: rule for rule in _changes(moments)}
        with urgent():
            if self._ended.wait(max(0.0, began + at_s - time.monotonic())):
                prepared.cancel()
                return False
            for moment in moments:
                if moment.action is not None:
                    self._act(moment, moment.action, began)
            if latest:
                with self._lock:
                    self._shaper.change(prepared)
                applied_s = time.monotonic() - began
        if latest:
            self._confirm(moments, latest, applied_s, began)
        return True

    def _confirm(
        self, moments: Sequence[Moment], latest: Mapping[str, LinkRule], applied_s: float, began: float
    ) -> None:
        """Read the changed links back, and report."""
        with self._lock:
            asked_s = time.monotonic() - began
            queues = self._shaper.queues()
            sampled_s = (asked_s + time.monotonic() - began) / 2
            self._shaper.check_rates()
            self._shaper.check_switches()
            acknowledged_s = time.monotonic() - began
        for moment in moments:
            if moment.rule is not None:
                rule = latest[moment.rule.source]
                row = event_row(
                    moment.number,
                    self._device,
                    "link",
                    intended_s=moment.at_s,
                    applied_s=applied_s,
                    acknowledged_s=acknowledged_s,
                    source=rule.source,
                    rate_mbps=None if rule.rate_bps is None else rule.rate_bps / 1e6,
                    loss_pct=100 * rule.loss.mean,
                    sampled_s=sampled_s,
                    delivered_bytes=queues[rule.source].delivered_bytes,
                    waiting_bytes=queues[rule.source].waiting_bytes,
                )
                self._on_row(row)

    def _check_patterns(self) -> None:
        """Read back which packets are lost, position by position, of patterns that were not loaded ahead."""
        if self._shaper.has_unread_patterns:
            with self._lock:
                self._shaper.check_losses()

    def _act(self, moment: Moment, action: DeviceAction, began: float) -> None:
        self.killed = self.killed or action == "kill"
        self._signal_program(SIGNALS[action])  # the kernel has noted it for every process of the group on return
        now_s = time.monotonic() - began
        row = event_row(
            moment.number,
            self._device,
            action,
            intended_s=moment.at_s,
            applied_s=now_s,
            acknowledged_s=now_s,
        )
        self._on_row(row)


def _changes(moments: Sequence[Moment]) -> list[LinkRule]:
    """Return the rule that each changed link has after all of these moments."""
    return list({moment.rule.source: moment.rule for moment in moments if moment.rule is not None}.values())


def _together(moments: Iterator[Moment]) -> Iterator[tuple[float, list[Moment]]]:
    """Yield the moments that share a time, lazily, so that one call of the kernel's tools changes all their links."""
    for at_s, group in itertools.groupby(moments, key=lambda moment: moment.at_s):
        yield at_s, list(group)
