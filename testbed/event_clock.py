"""Carry a device's schedule out on its own monotonic clock, and report when each event really happened.

    Schedule --timeline--> due --sleep--> Shaper.change | signal --> read back --> row of the table `events`

A thread of the agent, so that no message keeps it waiting. Times in rows are seconds since `begin`: `intended_s` by the
scenario, `applied_s` when the kernel had been told, `acknowledged_s` when it had answered with what was asked.
"""

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from testbed.errors import TestbedError
from testbed.links import DeviceRules, LinkRule
from testbed.schedule import DeviceAction, Moment, Schedule, timeline
from testbed.shaper import PreparedChange, Shaper

__all__ = ["EventClock", "Row"]

Row = dict[str, str | int | float | bool | None]

FIRST = -20
"""The niceness of what may not wait."""
SIGNALS = {"pause": signal.SIGSTOP, "resume": signal.SIGCONT, "kill": signal.SIGKILL}


class EventClock:
    """The schedule of one program's run. `lock` guards the shaper against its other users."""

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
    ):
        self._moments = timeline(rules, schedule)
        self._device, self._shaper, self._lock = rules.device, shaper, lock
        self._signal_program, self._on_row, self._on_error = signal_program, on_row, on_error
        self._losses = {rule.source: rule.loss for rule in rules.rules}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.killed = False
        """Whether an event has killed the program."""

    def begin(self) -> None:
        """Start the clock now."""
        self._thread = threading.Thread(target=self._run, args=(time.monotonic(),), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the schedule, however much of it is left; idempotent."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, began: float) -> None:
        _go_first()
        try:
            for at_s, moments in _together(self._moments):
                latest = {moment.rule.source: moment.rule for moment in moments if moment.rule is not None}
                prepared = self._shaper.prepare(list(latest.values()))
                if self._ended.wait(max(0.0, began + at_s - time.monotonic())):
                    prepared.cancel()
                    return
                for moment in moments:
                    if moment.action is not None:
                        self._act(moment, moment.action, began)
                if latest:
                    self._change_links(moments, latest, prepared, began)
        except TestbedError as error:
            self._on_error(error)

    def _change_links(
        self, moments: Sequence[Moment], latest: Mapping[str, LinkRule], prepared: PreparedChange, began: float
    ) -> None:
        with self._lock:
            self._shaper.change(prepared)
            applied_s = time.monotonic() - began
            self._shaper.check_rates()
            if any(self._losses[source] != rule.loss for source, rule in latest.items()):
                self._shaper.check_losses()
            acknowledged_s = time.monotonic() - began
        for moment in moments:
            if moment.rule is not None:
                rule = latest[moment.rule.source]
                self._losses[rule.source] = rule.loss
                asked: Row = {"source": rule.source, "action": "link"}
                asked["rate_mbps"] = None if rule.rate_bps is None else rule.rate_bps / 1e6
                asked["loss_pct"] = 100 * rule.loss.mean
                self._report(moment, asked, applied_s, acknowledged_s)

    def _act(self, moment: Moment, action: DeviceAction, began: float) -> None:
        self.killed = self.killed or action == "kill"
        self._signal_program(SIGNALS[action])  # the kernel has noted it for every process of the group on return
        applied_s = time.monotonic() - began
        asked: Row = {"source": None, "action": action, "rate_mbps": None, "loss_pct": None}
        self._report(moment, asked, applied_s, applied_s)

    def _report(self, moment: Moment, asked: Row, applied_s: float, acknowledged_s: float) -> None:
        times: Row = {
            "intended_s": moment.at_s,
            "applied_s": round(applied_s, 6),
            "acknowledged_s": round(acknowledged_s, 6),
            "late_ms": round(1e3 * (applied_s - moment.at_s), 3),
        }
        self._on_row({"event": moment.number, "destination": self._device, **asked, **times})


def _go_first() -> None:
    """Put this thread, and the tools that it starts, before other programs of the machine where that is allowed.

    Each change takes about a millisecond of processor time; late ones would make the network another than asked.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), FIRST)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(os.sched_get_priority_min(os.SCHED_RR)))


def _together(moments: Iterator[Moment]) -> Iterator[tuple[float, list[Moment]]]:
    """Yield the moments that share a time, lazily, so that one call of the kernel's tools changes all their links."""
    for at_s, group in itertools.groupby(moments, key=lambda moment: moment.at_s):
        yield at_s, list(group)
