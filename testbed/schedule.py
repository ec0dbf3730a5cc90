"""What happens to links and to a device while a program runs, in order of time. Pure.

    events of the scenario --schedule_for--> Schedule of one device (SI units, sent before the program starts)
    Schedule + link rules --timeline--> (when, which event, the link's rule from then on), lazily, since traces may loop

A trace drives its links until a later event states their rate or starts another trace. A partition hides what else
happens to a link, and `heal` shows it again. Who applies the changes, and when that really was, is not known here.
"""

import heapq
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from testbed.device_action import DEVICE_ACTIONS, DeviceAction
from testbed.links import DeviceRules, LinkRule
from testbed.loss import Bernoulli, Loss
from testbed.traces import LEAST_RATE_BPS, Course, Step, steps_of

if TYPE_CHECKING:  # agents follow a schedule and never read a scenario, whose schema is slow to import
    from testbed.event_schema import Event
    from testbed.scenario import Scenario

__all__ = [
    "Change",
    "DeviceEvent",
    "LinkEvent",
    "Moment",
    "Schedule",
    "device_events",
    "loss_changes",
    "losses_to_come",
    "rules_at",
    "schedule_for",
    "timeline",
]

ALL_LOST = Bernoulli(1.0)
MOST_LOOKED_AT = 50_000
"""Changes of one device; a quarter of a second of looking, and far more than it has different losses."""


@dataclass(frozen=True)
class Change:
    """Settings that a link gets; None leaves one as it is."""

    rate_bps: float | None = None
    queue_s: float | None = None
    loss: Loss | None = None


@dataclass(frozen=True)
class LinkEvent:
    """Something that happens to links that end at a device: one of `change`, `course` and `cut` is given."""

    number: int
    """Position in the scenario's list of events."""
    at_s: float
    sources: tuple[str, ...]
    change: Change | None = None
    course: Course | None = None
    loop: bool = False
    cut: bool | None = None
    """True where the links break, False where they are whole again."""


@dataclass(frozen=True)
class DeviceEvent:
    """Something that happens to a device."""

    number: int
    at_s: float
    action: DeviceAction


@dataclass(frozen=True)
class Schedule:
    """All that happens to one device."""

    links: tuple[LinkEvent, ...] = ()
    device: tuple[DeviceEvent, ...] = ()


@dataclass(frozen=True)
class Moment:
    """A change that is due: a link's whole rule from then on, an action on the program, or nothing new."""

    at_s: float
    number: int
    rule: LinkRule | None = None
    action: DeviceAction | None = None


def schedule_for(
    scenario: "Scenario", destination: str, actions: Collection[DeviceAction] = DEVICE_ACTIONS
) -> Schedule:
    """Return what happens to links that end at `destination`, and those of `actions` that happen to it itself."""
    from testbed.scenario import device_names

    names = device_names(scenario.devices.count)
    links: list[LinkEvent] = []
    for number, event in enumerate(scenario.events):
        if event.link is not None:
            link = event.link
            sources = tuple(name for name in names if name != destination and link.covers(name, destination))
            if sources:
                links += _link_events(number, event, sources)
    return Schedule(tuple(links), device_events(scenario, destination, actions))


def device_events(scenario: "Scenario", device: str, actions: Collection[DeviceAction]) -> tuple[DeviceEvent, ...]:
    """Return those of `actions` that happen to a device, in order of time."""
    found = [
        DeviceEvent(number, event.at_s, action)
        for number, event in enumerate(scenario.events)
        for action in actions
        if event.device == device and event.action == action
    ]
    return tuple(sorted(found, key=lambda event: (event.at_s, event.number)))


def loss_changes(schedule: Schedule, source: str) -> bool:
    """Whether the loss of the link from `source` changes at any time."""
    return any(
        event.cut is not None
        or (event.change is not None and event.change.loss is not None)
        or (event.course is not None and any(step.loss is not None for step in event.course.steps))
        for event in schedule.links
        if source in event.sources
    )


def rules_at(rules: DeviceRules, schedule: Schedule, at_s: float) -> DeviceRules:
    """Return what has become of `rules` by `at_s`."""
    so_far = itertools.takewhile(lambda moment: moment.at_s <= at_s, timeline(rules, schedule))
    latest = {moment.rule.source: moment.rule for moment in so_far if moment.rule is not None}
    return replace(rules, rules=tuple(latest.get(rule.source, rule) for rule in rules.rules))


def losses_to_come(rules: DeviceRules, schedule: Schedule) -> Iterator[LinkRule]:
    """Yield a rule for every loss that a link will have, once each, in order of time; recordings that loop, one round.

    Of a schedule with more than `MOST_LOOKED_AT` changes only those.
    """
    ends = [event.at_s + (event.course.duration_s if event.course is not None else 0) for event in schedule.links]
    last_s = max(ends, default=0.0)
    known = {(rule.source, rule.loss) for rule in rules.rules}
    ahead = itertools.takewhile(lambda moment: moment.at_s <= last_s, timeline(rules, schedule))
    for moment in itertools.islice(ahead, MOST_LOOKED_AT):
        if moment.rule is not None and (moment.rule.source, moment.rule.loss) not in known:
            known.add((moment.rule.source, moment.rule.loss))
            yield moment.rule


def timeline(rules: DeviceRules, schedule: Schedule) -> Iterator[Moment]:
    """Yield every change in order of time; of several at one time the scenario's order counts."""
    states = {rule.source: _Link(rule) for rule in rules.rules}
    streams = [_stream(event) for event in schedule.links]
    streams.append(iter([_Item(event.at_s, event.number, event, event.action) for event in schedule.device]))
    streams[-1] = iter(sorted(streams[-1], key=_order))
    for item in heapq.merge(*streams, key=_order):
        if isinstance(item.event, DeviceEvent):
            yield Moment(item.at_s, item.number, action=item.event.action)
            continue
        for source in item.event.sources:
            state = states[source]
            # A trace that loops without changing anything still has to let its reader come up for air.
            changed = state.take(item.number, item.what)
            yield Moment(item.at_s, item.number, rule=state.rule if changed else None)


@dataclass(frozen=True)
class _Item:
    at_s: float
    number: int
    event: LinkEvent | DeviceEvent
    what: Change | Step | bool | str


def _order(item: _Item) -> tuple[float, int]:
    return item.at_s, item.number


class _Link:
    """One link as it changes."""

    def __init__(self, rule: LinkRule):
        self._whole = rule
        self._cut = False
        self._driver: int | None = None
        """The event whose trace drives the link."""
        self._ended: set[int] = set()

    @property
    def rule(self) -> LinkRule:
        """The rule that holds now."""
        return replace(self._whole, loss=ALL_LOST) if self._cut else self._whole

    def take(self, number: int, what: Change | Step | bool | str) -> bool:
        """Take a change in; return whether the link differs from before."""
        before = self.rule
        if isinstance(what, bool):
            self._cut = what
        elif isinstance(what, Step):
            if number in self._ended:
                return False
            if self._driver is not None and self._driver != number:
                self._ended.add(self._driver)
            self._driver = number
            loss = self._whole.loss if what.loss is None else Bernoulli(what.loss)
            self._whole = replace(self._whole, rate_bps=max(what.rate_bps, LEAST_RATE_BPS), loss=loss)
        elif isinstance(what, Change):
            self._whole = replace(
                self._whole,
                rate_bps=self._whole.rate_bps if what.rate_bps is None else what.rate_bps,
                queue_s=self._whole.queue_s if what.queue_s is None else what.queue_s,
                loss=self._whole.loss if what.loss is None else what.loss,
            )
            if what.rate_bps is not None and self._driver is not None:
                self._ended.add(self._driver)
                self._driver = None
        return self.rule != before


def _stream(event: LinkEvent) -> Iterator[_Item]:
    """Yield all that one event does, in order of time."""
    if event.change is not None:
        yield _Item(event.at_s, event.number, event, event.change)
    if event.cut is not None:
        yield _Item(event.at_s, event.number, event, event.cut)
    if event.course is not None:
        for at_s, step in steps_of(event.course, loop=event.loop):
            yield _Item(event.at_s + at_s, event.number, event, step)


def _link_events(number: int, event: "Event", sources: Sequence[str]) -> Iterator[LinkEvent]:
    """Convert one event on links to SI units."""
    from testbed.scenario import LinkSettings

    at_s, sources = event.at_s, tuple(sources)
    if event.set is not None:
        asked = event.set.given()
        unset = LinkSettings(rate_mbps=None, delay_ms=0, jitter_ms=0, loss_pct=0, queue_ms=0)
        change = Change(
            rate_bps=asked["rate_mbps"] * 1e6 if "rate_mbps" in asked else None,
            queue_s=asked["queue_ms"] / 1000 if "queue_ms" in asked else None,
            loss=event.set.over(unset).loss_model() if asked.keys() & {"loss", "loss_pct"} else None,
        )
        yield LinkEvent(number, at_s, sources, change=change)
    if event.trace is not None:
        yield LinkEvent(number, at_s, sources, course=event.trace.course(), loop=event.trace.loop)
    if event.action in ("partition", "heal"):
        yield LinkEvent(number, at_s, sources, cut=event.action == "partition")
    if event.action == "flap":
        for turn in range(event.times or 0):
            down_s = at_s + turn * ((event.down_s or 0) + (event.up_s or 0))
            yield LinkEvent(number, down_s, sources, cut=True)
            yield LinkEvent(number, down_s + (event.down_s or 0), sources, cut=False)
