"""The `events` block of a scenario: what happens to links and devices while the program runs."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic_core import InitErrorDetails

from testbed.block import OMITTABLE, Block, Rule
from testbed.device_action import DEVICE_ACTIONS
from testbed.faults import fault_at, violation
from testbed.fields import DeviceName, Text
from testbed.link_schema import LinkChanges, LinkSelector
from testbed.traces import LEAST_RATE_BPS, Course, TraceError, read

__all__ = ["Event", "Trace"]

DEVICE_RULE = "pause, resume, kill or restart"
LINK_ACTIONS = ("partition", "heal", "flap")
FLAP_KEYS = ("down_s", "up_s", "times")

Seconds = Annotated[float, Field(ge=0.01), Rule("a number of at least 0.01", "it counts seconds", "number")]


class Trace(Block):
    """A recorded course of a link's rate, and if wanted of its loss."""

    file: Text
    """File with the recording, relative to the scenario; read where no text is given."""
    format: Annotated[Literal["mahimahi", "csv"], Rule("mahimahi or csv", "name the format of the file")]
    """Format of the file: mahimahi or csv."""
    loop: Annotated[bool, Rule("true or false", "yes, no, on and off are text in YAML 1.2")] = False
    """Whether the recording starts again at its end."""
    text: Annotated[Text | None, OMITTABLE] = None
    """The recording itself."""

    @classmethod
    def rules_between(cls, data: Mapping[Any, Any]) -> Iterator[InitErrorDetails]:
        """Refuse a recording that cannot be read in its format."""
        yield from super().rules_between(data)
        text, form = data.get("text"), data.get("format")
        if isinstance(text, str) and form in ("mahimahi", "csv"):
            try:
                course = read(text, form)
            except TraceError as error:
                yield fault_at(("file",), data.get("file"), violation(error.must_be, error.todo))
            else:
                if any(step.delay_s is not None for step in course.steps):
                    rule = violation("a recording without delays", "events cannot change delays yet; remove the column")
                    yield fault_at(("file",), data.get("file"), rule)

    def course(self) -> Course:
        """Return the recording. Raises TraceError if its file has not been read."""
        return read(self.text or "", self.format)


class Event(Block):
    """Something that happens to links or to a device while the program runs."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["link"]}, {"required": ["device", "action"]}]})

    at_s: Annotated[float, Field(ge=0), Rule("a number of at least 0", "it counts seconds from the start", "number")]
    """When, in seconds from the start of the program."""
    link: Annotated[LinkSelector | None, OMITTABLE] = None
    """The links that change."""
    set: Annotated[LinkChanges | None, OMITTABLE] = None
    """What changes on the links: rate_mbps, queue_ms, and loss_pct or loss."""
    trace: Annotated[Trace | None, OMITTABLE] = None
    """The recording that the links follow, until a later event states their rate."""
    device: Annotated[DeviceName | None, OMITTABLE] = None
    """The device that something happens to."""
    action: Annotated[
        Annotated[
            Literal["pause", "resume", "kill", "restart", "partition", "heal", "flap"],
            Rule(
                f"{DEVICE_RULE} for a device, partition, heal or flap for links",
                "name what happens to device or link",
            ),
        ]
        | None,
        OMITTABLE,
    ] = None
    """What happens to the device (pause, resume, kill, restart) or to the links (partition, heal, flap)."""
    down_s: Annotated[Seconds | None, OMITTABLE] = None
    """How long flapping links are broken each time, in seconds."""
    up_s: Annotated[Seconds | None, OMITTABLE] = None
    """How long flapping links are whole in between, in seconds."""
    times: Annotated[
        Annotated[
            int, Field(ge=1, le=10_000), Rule("a whole number from 1 to 10000", "it counts interruptions", "integer")
        ]
        | None,
        OMITTABLE,
    ] = None
    """How often flapping links break."""

    def least_rate_mbps(self) -> float | None:
        """Return the slowest rate that the event gives a link, or None where it gives none."""
        if self.trace is not None and self.trace.text is not None:
            return max(min(step.rate_bps for step in self.trace.course().steps), LEAST_RATE_BPS) / 1e6
        return None if self.set is None else self.set.rate_mbps

    @classmethod
    def rules_between(cls, data: Mapping[Any, Any]) -> Iterator[InitErrorDetails]:
        """Refuse an event that is not exactly one thing, or that cannot be done."""
        yield from super().rules_between(data)
        if ("link" in data) == ("device" in data):
            yield fault_at((), dict(data), violation("about one of link and device", "keep or add one of the two"))
            return
        action = data.get("action")
        if "device" in data:
            yield from (_absent(data, key, "device") for key in ("set", "trace") if key in data)
            if "action" not in data:
                yield fault_at(("action",), None, violation("given", f"add action: {DEVICE_RULE}", absent=True))
            elif action in LINK_ACTIONS:
                yield fault_at(("action",), action, violation(DEVICE_RULE, "it happens to links"))
        else:
            if sum(key in data for key in ("set", "trace", "action")) != 1:
                rule = violation("one of set, trace and action", "keep or add one")
                yield fault_at((), dict(data), rule)
            if action in DEVICE_ACTIONS:
                yield fault_at(("action",), action, violation("partition, heal or flap", "it happens to devices"))
            yield from _faults_of_changes(data.get("set"))
        for key in FLAP_KEYS:
            if action == "flap" and key not in data:
                yield fault_at((key,), None, violation("given where action is flap", "add it", absent=True))
            elif action != "flap" and key in data:
                yield fault_at((key,), data[key], violation("absent where action is not flap", "remove it"))


def _absent(data: Mapping[Any, Any], key: str, other: str) -> InitErrorDetails:
    return fault_at((key,), data[key], violation(f"absent where {other} is given", "keep one of the two"))


def _faults_of_changes(changes: object) -> Iterator[InitErrorDetails]:
    """Yield what an event cannot change."""
    if not isinstance(changes, dict):
        return
    if not changes:
        yield fault_at(("set",), changes, violation("a change of rate_mbps, loss_pct, loss or queue_ms", "add one"))
    if "rate_mbps" in changes and changes["rate_mbps"] is None:
        yield fault_at(("set", "rate_mbps"), None, violation("a number in an event", "give the link a rate"))
    for key in ("delay_ms", "jitter_ms", "reorder_pct"):
        if key in changes:
            rule = violation("absent in an event", "events cannot change delays yet")
            yield fault_at(("set", key), changes[key], rule)
