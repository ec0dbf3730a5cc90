"""What all messages between controller and agents have in common."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Message", "TableName", "Value"]

Integer = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Value = str | bool | Integer | Annotated[float, Field(strict=True, allow_inf_nan=False)] | None
"""A cell of a table: what CSV, JSON and msgpack all can say."""
TableName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
"""Of a table in the run folder, and so of a file."""


class Message(BaseModel):
    """One message; `kind` tells which."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    version: ClassVar[int] = 1
