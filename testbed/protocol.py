"""Messages between controller and agents, and between an agent and its program.

    controller (ROUTER)  <-- msgpack over ZeroMQ, ipc:// or the control network -->  agent (DEALER)
    agent                <-- JSON lines over a Unix socket -->                       program (any language)

Only says what the messages are and turns them into bytes and back; sends nothing. A frame that does not decode is a
`ValueError` for the receiver to count and drop, never a crash.
"""

from typing import Annotated, Any, ClassVar, Literal

import msgpack
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from testbed.links import DeviceRules
from testbed.schedule import Schedule

__all__ = [
    "Again",
    "AgentMessage",
    "Barrier",
    "BarrierOpen",
    "Beat",
    "Begin",
    "Bye",
    "Collected",
    "ControllerMessage",
    "Counters",
    "DeviceCall",
    "Exited",
    "Failed",
    "File",
    "Hello",
    "Hold",
    "Limits",
    "LinkCount",
    "Log",
    "Mark",
    "Next",
    "Ping",
    "Progress",
    "ReadCounters",
    "Row",
    "Shape",
    "Shaped",
    "Start",
    "Started",
    "Stop",
    "decode_agent",
    "decode_controller",
    "encode",
]

PING_PERIOD_S = 1.0
SILENCE_LIMIT_S = 10.0
"""An agent that hears nothing from its controller for this long stops its program and exits."""
FILE_CHUNK_BYTES = 1 << 20
MESSAGE_LIMIT_BYTES = 64 << 20
"""Whoever sends a larger message is cut off. Loss patterns and a program's config are the largest that are ours."""

Integer = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Value = str | bool | Integer | Annotated[float, Field(strict=True, allow_inf_nan=False)] | None
"""A cell of a table: what CSV, JSON and msgpack all can say."""
OWN_TABLES = ("links", "marks", "events", "traces", "results")
"""Tables that testbed writes itself."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    version: ClassVar[int] = 1


class LinkCount(BaseModel):
    """Kernel counters of one link that ends at the reporting device, since its rules were last reset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    packets: int
    lost: int
    overflowed: int


class Limits(BaseModel):
    """What a device may use; None is without limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: float | None
    memory_bytes: int | None


# Agent to controller


class Hello(_Message):
    """The first word of an agent: who it is, and its address on the data network.

    An agent without a name (`device` None) becomes whatever device is still to come, and says what limits it has.
    `life` is another one each time an agent starts, so that one that repeats itself is told from one that is back.
    """

    kind: Literal["hello"] = "hello"
    device: str | None
    address: str
    control_address: str | None = None
    """On the network that joins agents and controller; None where that is a Unix socket."""
    pid: int
    life: str
    limits: Limits | None = None


class Shaped(_Message):
    """The rules of the last `Shape` are in the kernel and were read back equal."""

    kind: Literal["shaped"] = "shaped"
    mechanism: dict[str, str]


class Started(_Message):
    """The program runs."""

    kind: Literal["started"] = "started"
    pid: int
    user: str


class Log(_Message):
    """One line that the program wrote."""

    kind: Literal["log"] = "log"
    stream: Literal["stdout", "stderr", "agent"]
    line: str


class Row(_Message):
    """One row for a table of the run folder."""

    kind: Literal["row"] = "row"
    table: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
    row: dict[str, Value]


class Mark(_Message):
    """The program passed a phase mark; counters read at that moment."""

    kind: Literal["mark"] = "mark"
    name: str
    links: dict[str, LinkCount]


class Progress(_Message):
    """How far the program is."""

    kind: Literal["progress"] = "progress"
    label: str
    done: int
    total: int


class Barrier(_Message):
    """The program waits until every device has asked for this barrier."""

    kind: Literal["barrier"] = "barrier"
    name: str


class Counters(_Message):
    """Answer to `ReadCounters`."""

    kind: Literal["counters"] = "counters"
    links: dict[str, LinkCount]


class File(_Message):
    """A piece of a file that the program left under TESTBED_OUT."""

    kind: Literal["file"] = "file"
    path: str
    data: bytes
    last: bool


class Exited(_Message):
    """The program ended. `code` is negative for a signal, as in `subprocess`; `by_event` if the scenario killed it."""

    kind: Literal["exited"] = "exited"
    code: int
    last_lines: tuple[str, ...]
    by_event: bool = False


class Collected(_Message):
    """All files of the ended program have been sent."""

    kind: Literal["collected"] = "collected"
    left_out: tuple[str, ...] = ()


class Again(_Message):
    """The program is done and asks whether to do the same once more; all files that it has left have been sent."""

    kind: Literal["again"] = "again"
    left_out: tuple[str, ...] = ()


class Failed(_Message):
    """The agent could not do what it was told. `exit_code` is 2 where this machine cannot do it at all."""

    kind: Literal["failed"] = "failed"
    error: str
    exit_code: int = 1


class Beat(_Message):
    """Answer to `Ping`."""

    kind: Literal["beat"] = "beat"


# Controller to agent


class Shape(_Message):
    """Put rules in place of whatever is there; loss patterns and counters start at zero.

    Those rules are what has become of `rules` after `since_s` of `schedule`.
    """

    kind: Literal["shape"] = "shape"
    rules: DeviceRules
    schedule: Schedule = Schedule()
    since_s: float = 0.0


class Start(_Message):
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


class Begin(_Message):
    """Every device's program has started: begin the schedule now, or go on where it has been for `elapsed_s`."""

    kind: Literal["begin"] = "begin"
    elapsed_s: float = 0.0


class BarrierOpen(_Message):
    """Every device has reached the barrier."""

    kind: Literal["barrier_open"] = "barrier_open"
    name: str


class ReadCounters(_Message):
    """Ask for `Counters`."""

    kind: Literal["read_counters"] = "read_counters"


class Next(_Message):
    """Answer to `Again`: whether the program shall do the same once more, over links that may have changed."""

    kind: Literal["next"] = "next"
    more: bool


class Stop(_Message):
    """End the program's whole process group: SIGTERM, then SIGKILL after `grace_s`."""

    kind: Literal["stop"] = "stop"
    grace_s: float = 1.0


class Ping(_Message):
    """The controller lives."""

    kind: Literal["ping"] = "ping"


class Hold(_Message):
    """Keep the links as they are and go on without a controller (`testbed up`)."""

    kind: Literal["hold"] = "hold"


class Bye(_Message):
    """Stop everything and exit."""

    kind: Literal["bye"] = "bye"


AgentMessage = (
    Hello
    | Shaped
    | Started
    | Log
    | Row
    | Mark
    | Progress
    | Barrier
    | Counters
    | File
    | Exited
    | Collected
    | Again
    | Failed
    | Beat
)
ControllerMessage = Shape | Start | Begin | BarrierOpen | ReadCounters | Next | Stop | Ping | Hold | Bye


# Program to agent (JSON lines)


def _not_our_own(table: str) -> str:
    if table in OWN_TABLES:
        raise ValueError(f"must be none of testbed's own tables {', '.join(OWN_TABLES)}, got {table!r}")
    return table


class RowCall(BaseModel):
    """`{"op": "row", "table": ..., "row": {...}}`."""

    model_config = ConfigDict(extra="forbid")
    op: Literal["row"]
    table: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$"), AfterValidator(_not_our_own)]
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


DeviceCall: TypeAdapter[RowCall | MarkCall | ProgressCall | BarrierCall | AgainCall] = TypeAdapter(
    Annotated[RowCall | MarkCall | ProgressCall | BarrierCall | AgainCall, Field(discriminator="op")]
)

_agent_adapter: TypeAdapter[AgentMessage] = TypeAdapter(Annotated[AgentMessage, Field(discriminator="kind")])
_controller_adapter: TypeAdapter[ControllerMessage] = TypeAdapter(
    Annotated[ControllerMessage, Field(discriminator="kind")]
)


def encode(message: AgentMessage | ControllerMessage) -> bytes:
    """Turn a message into one ZeroMQ frame."""
    frame: bytes = msgpack.packb([_Message.version, message.model_dump()])
    return frame


def decode_agent(frame: bytes) -> AgentMessage:
    """Read what an agent sent. Raises `ValueError` for anything else."""
    return _agent_adapter.validate_python(_unpack(frame))


def decode_controller(frame: bytes) -> ControllerMessage:
    """Read what the controller sent. Raises `ValueError` for anything else."""
    return _controller_adapter.validate_python(_unpack(frame))


def _unpack(frame: bytes) -> Any:
    try:
        version, fields = msgpack.unpackb(frame)
    except (msgpack.UnpackException, ValueError, TypeError) as error:
        raise ValueError(f"not a control message: {error}") from error
    if version != _Message.version:
        raise ValueError(f"control message must be version {_Message.version}, got {version!r}")
    return fields


def describe_fault(error: ValidationError) -> str:
    """Say in one line what is wrong with a program's request."""
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
