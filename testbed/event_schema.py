"""The `events` block of a scenario: its form is checked, but `testbed.scenario` refuses to run it for now."""

from typing import Annotated, Literal

from pydantic import Field

from testbed.block import OMITTABLE, Block, Rule
from testbed.fields import DeviceName, Text
from testbed.link_schema import LinkChanges, LinkSelector

__all__ = ["Event"]


class Trace(Block):
    """A recorded course of a link's rate."""

    file: Text
    """File with the recording, relative to the scenario."""
    format: Annotated[Literal["mahimahi", "csv"], Rule("mahimahi or csv", "name the format of the file")]
    """Format of the file: mahimahi or csv."""
    loop: Annotated[bool, Rule("true or false", "yes, no, on and off are text in YAML 1.2")] = False
    """Whether the recording starts again at its end."""


class Event(Block):
    """Something that happens to a link or to a device while the program runs."""

    at_s: Annotated[float, Field(ge=0), Rule("a number of at least 0", "it counts seconds from the start", "number")]
    """When, in seconds from the start of the program."""
    link: Annotated[LinkSelector | None, OMITTABLE] = None
    """The links that change."""
    set: Annotated[LinkChanges | None, OMITTABLE] = None
    """What changes on the links."""
    trace: Annotated[Trace | None, OMITTABLE] = None
    """The recording that the links follow."""
    device: Annotated[DeviceName | None, OMITTABLE] = None
    """The device that something happens to."""
    action: Annotated[
        Annotated[
            Literal["pause", "resume", "kill", "restart"],
            Rule("pause, resume, kill or restart", "name what happens to the device"),
        ]
        | None,
        OMITTABLE,
    ] = None
    """What happens to the device: pause, resume, kill or restart."""
