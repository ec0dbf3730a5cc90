"""What a program asks of its agent over the device socket: one JSON object a line, one reply each."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from testbed.protocol.message import TableName, Value

__all__ = [
    "AgainCall",
    "BarrierCall",
    "Call",
    "DeviceCall",
    "MarkCall",
    "ProgressCall",
    "RowCall",
    "describe_fault",
]

OWN_TABLES = ("links", "marks", "events", "traces", "results")
"""Tables that testbed writes itself."""


def _not_our_own(table: str) -> str:
    if table in OWN_TABLES:
        raise ValueError(f"must be none of testbed's own tables {', '.join(OWN_TABLES)}, got {table!r}")
    return table


class RowCall(BaseModel):
    """`{"op": "row", "table": ..., "row": {...}}`."""

    model_config = ConfigDict(extra="forbid")
    op: Literal["row"]
    table: Annotated[TableName, AfterValidator(_not_our_own)]
    row: dict[str, Value]


class MarkCall(BaseModel):
    """`{"op": "mark", "name": ...}`; the reply carries the link counters."""

    model_config = ConfigDict(extra="forbid")
    op: Literal["mark"]
    name: str


class ProgressCall(BaseModel):
    """`{"op": "progress", "label": ..., "done": ..., "total": ...}`."""

    model_config = ConfigDict(extra="forbid")
    op: Literal["progress"]
    label: str
    done: int
    total: int


class BarrierCall(BaseModel):
    """`{"op": "barrier", "name": ...}`; the reply comes once every device has asked."""

    model_config = ConfigDict(extra="forbid")
    op: Literal["barrier"]
    name: str


class AgainCall(BaseModel):
    """`{"op": "again"}`, once a program is done; the reply says whether to do the same once more (`"again": true`).

    A program that never asks is started anew each time. What it has left under TESTBED_OUT is taken away.
    """

    model_config = ConfigDict(extra="forbid")
    op: Literal["again"]


Call = RowCall | MarkCall | ProgressCall | BarrierCall | AgainCall
DeviceCall: TypeAdapter[Call] = TypeAdapter(Annotated[Call, Field(discriminator="op")])
"""Reads a line of the device socket."""


def describe_fault(error: ValidationError) -> str:
    """Say in one line what is wrong with a program's request."""
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
