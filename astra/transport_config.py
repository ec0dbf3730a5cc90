"""How the rows of a strategy travel: reliably, or as datagrams with a deadline. Pure, free of torch."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from astra import faults
from astra.section import Section, named

__all__ = ["MOST_SLACK_MS", "DatagramConfig", "ReliableConfig", "TransportConfig"]

MOST_SLACK_MS = 20.0
"""Slack where none is given and nothing is known yet: four times what four devices of 0.4 CPU differ by from layer to
layer on two cores."""


class ReliableConfig(Section):
    """TCP: everything arrives, in whatever time that takes."""

    name: Literal["reliable"] = "reliable"

    @property
    def settings(self) -> str:
        """What tells two entries apart in a table."""
        return ""


class DatagramConfig(Section):
    """UDP: what is lost, or later than the deadline, is missing."""

    name: Literal["datagram"] = "datagram"
    deadline_ms: float | None = Field(default=None, gt=0)
    """Longest wait for peers' rows in layer 0 after this rank's own have left, a tenth more in each further layer; None
    to take it from earlier arrivals."""
    slack_ms: float | None = Field(default=None, ge=0)
    """How much later than usual rows may be in layer 0, where `deadline_ms` is None; grows like it; None to take it
    from how much earlier arrivals differ, at most 20."""
    on_missing: Literal["mask", "stale"] = "mask"
    """Leave what is missing out of attention, or take it from the layer before; what that lacks too is left out."""
    copies: int = Field(default=1, ge=1, le=8)
    """How often every datagram is sent."""
    parity: bool = False
    """Send the exclusive or of a message's datagrams too, which gives back one that is lost."""

    @model_validator(mode="after")
    def _has_one_deadline(self) -> Self:
        if self.deadline_ms is not None and self.slack_ms is not None:
            raise faults.rule_error(
                "given either deadline_ms or slack_ms", "slack is added to a deadline that is measured"
            )
        return self

    @property
    def settings(self) -> str:
        """What tells two entries apart in a table."""
        parts = [
            "" if self.deadline_ms is None else f"deadline={self.deadline_ms:g}",
            "" if self.slack_ms is None else f"slack={self.slack_ms:g}",
            "" if self.on_missing == "mask" else self.on_missing,
            "" if self.copies == 1 else f"copies={self.copies}",
            "parity" if self.parity else "",
        ]
        return " ".join(["", "datagram", *(part for part in parts if part)])


TransportConfig = Annotated[ReliableConfig | DatagramConfig, Field(discriminator="name"), BeforeValidator(named)]
"""A transport; a bare name stands for it with its defaults."""
