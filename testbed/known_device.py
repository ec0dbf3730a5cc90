"""What the controller knows of one device of its run."""

from dataclasses import dataclass, field
from typing import Literal

from testbed.protocol.from_agents import Exited, LinkCount
from testbed.protocol.to_agents import Start
from testbed.scenario import DeviceSpec

__all__ = ["KnownDevice"]


@dataclass
class KnownDevice:
    """What a device's agent has said, and what was asked of it."""

    rank: int
    spec: DeviceSpec
    address: str | None = None
    control_address: str | None = None
    life: str = ""
    heard_at: float = 0.0
    state: Literal["up", "paused", "down", "returning"] = "up"
    """`paused` and `down` (without an agent) by an event; `returning` has a new agent, but no program yet."""
    shaped: bool = False
    shaping: bool = False
    """It was told to, and says nothing else until that is done."""
    mechanism: dict[str, str] = field(default_factory=dict)
    start: Start | None = None
    """How its program was to be started."""
    started: bool = False
    user: str = ""
    asks: bool = False
    """Its program is done and waits to hear whether to do the same once more."""
    exited: Exited | None = None
    paused_program: bool = False
    """Its agent has stopped its program, by an event."""
    collected: bool = False
    counters: dict[str, LinkCount] | None = None

    @property
    def activity(self) -> str:
        """What it is doing, in a word or two."""
        if self.state != "up":
            return self.state
        if self.exited is not None:
            return "killed" if self.exited.by_event else "ended"
        if self.address is None:
            return "starting"
        if self.paused_program:
            return "paused"
        return "waiting" if self.asks else "running" if self.started else "ready"

    def begin(self, start: Start) -> None:
        """Take note that its agent is told to start a program."""
        self.start = start
        self.started, self.asks, self.exited, self.collected = False, False, None, False
        self.paused_program = False

    def note_event(self, action: object) -> None:
        """Take note of what its agent has done to its program."""
        if action in ("pause", "resume"):
            self.paused_program = action == "pause"
