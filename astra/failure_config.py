"""What becomes of a run when a peer is lost. Pure, free of torch."""

from typing import Literal

from pydantic import Field

from astra.section import Section

__all__ = ["FailuresConfig", "Policy"]

Policy = Literal["fail", "degrade", "replan"]


class FailuresConfig(Section):
    """How soon a lost peer is noticed, and what the others do then."""

    on_failure: Policy = "fail"
    """`fail`: end with exit code 1. `degrade`: ASTRA and PRISM do without its tokens; other strategies replan.
    `replan`: split the tokens over those that are left and ask again; a device that comes back joins again."""
    detect_s: float = Field(default=1.0, ge=0.5, le=60)
    """How long a peer may be silent, in seconds; one whose connection breaks is lost at once."""
