"""What agents are told by their controller."""

from typing import Literal

from pydantic import Field

from testbed.links import DeviceRules
from testbed.protocol.message import Message
from testbed.schedule import Schedule

__all__ = [
    "PING_PERIOD_S",
    "SILENCE_LIMIT_S",
    "BarrierOpen",
    "Begin",
    "Bye",
    "ControllerMessage",
    "Hold",
    "Next",
    "Ping",
    "ReadCounters",
    "Shape",
    "Start",
    "Stop",
]

PING_PERIOD_S = 1.0
SILENCE_LIMIT_S = 10.0
"""An agent that hears nothing from its controller for this long stops its program and exits."""


class Shape(Message):
    """Put rules in place of whatever is there; loss patterns and counters start at zero.

    Those rules are what has become of `rules` after `since_s` of `schedule`.
    """

    kind: Literal["shape"] = "shape"
    rules: DeviceRules
    schedule: Schedule = Schedule()
    since_s: float = 0.0


class Start(Message):
    """Run a program. `environment` is added to the agent's own; `uid`/`gid` None keeps the agent's user."""

    kind: Literal["start"] = "start"
    command: tuple[str, ...]
    environment: dict[str, str]
    config: str
    folder: str
    uid: int | None = None
    gid: int | None = None
    schedule: Schedule = Schedule()
    """What happens while it runs, from `Begin` on."""
    since_s: float | None = None
    """What was due until then has happened (see `Shape`); None where the schedule is still to begin."""
    keys: str | None = Field(default=None, repr=False)
    """Content of the program's key file, whose path it finds in CURVE_KEYS; None for none."""


class Begin(Message):
    """Every device's program has started: begin the schedule now, or go on where it has been for `elapsed_s`."""

    kind: Literal["begin"] = "begin"
    elapsed_s: float = 0.0


class BarrierOpen(Message):
    """Every device has reached the barrier."""

    kind: Literal["barrier_open"] = "barrier_open"
    name: str


class ReadCounters(Message):
    """Ask for `Counters`."""

    kind: Literal["read_counters"] = "read_counters"


class Next(Message):
    """Answer to `Again`: whether the program shall do the same once more, over links that may have changed."""

    kind: Literal["next"] = "next"
    more: bool


class Stop(Message):
    """End the program's whole process group: SIGTERM, then SIGKILL after `grace_s`."""

    kind: Literal["stop"] = "stop"
    grace_s: float = 1.0


class Ping(Message):
    """The controller lives."""

    kind: Literal["ping"] = "ping"


class Hold(Message):
    """Keep the links as they are and go on without a controller (`testbed up`)."""

    kind: Literal["hold"] = "hold"


class Bye(Message):
    """Stop everything and exit."""

    kind: Literal["bye"] = "bye"


ControllerMessage = Shape | Start | Begin | BarrierOpen | ReadCounters | Next | Stop | Ping | Hold | Bye
