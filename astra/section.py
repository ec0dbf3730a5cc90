"""What all parts of a config have in common. Pure, free of torch."""

from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["Section", "named"]


class Section(BaseModel):
    """A part of a config: unknown keys and wrong types are faults."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


def named(value: Any) -> Any:
    """Take a bare name as that kind with its defaults."""
    return {"name": value} if isinstance(value, str) else value
