"""What agents say to their controller."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from testbed.protocol.message import Message, TableName, Value

__all__ = [
    "FILE_CHUNK_BYTES",
    "Again",
    "AgentMessage",
    "Barrier",
    "Beat",
    "Collected",
    "Counters",
    "Exited",
    "Failed",
    "File",
    "Hello",
    "Limits",
    "LinkCount",
    "Log",
    "Mark",
    "Progress",
    "Row",
    "Shaped",
    "Started",
]

FILE_CHUNK_BYTES = 1 << 20
"""Of a file, in one `File`."""


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


class Hello(Message):
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


class Shaped(Message):
    """The rules of the last `Shape` are in the kernel and were read back equal."""

    kind: Literal["shaped"] = "shaped"
    mechanism: dict[str, str]


class Started(Message):
    """The program runs."""

    kind: Literal["started"] = "started"
    pid: int
    user: str


class Log(Message):
    """One line that the program wrote."""

    kind: Literal["log"] = "log"
    stream: Literal["stdout", "stderr", "agent"]
    line: str


class Row(Message):
    """One row for a table of the run folder."""

    kind: Literal["row"] = "row"
    table: TableName
    row: dict[str, Value]


class Mark(Message):
    """The program passed a phase mark; counters read at that moment."""

    kind: Literal["mark"] = "mark"
    name: str
    links: dict[str, LinkCount]


class Progress(Message):
    """How far the program is."""

    kind: Literal["progress"] = "progress"
    label: str
    done: int
    total: int


class Barrier(Message):
    """The program waits until every device has asked for this barrier."""

    kind: Literal["barrier"] = "barrier"
    name: str


class Counters(Message):
    """Answer to `ReadCounters`."""

    kind: Literal["counters"] = "counters"
    links: dict[str, LinkCount]


class File(Message):
    """A piece of a file that the program left under TESTBED_OUT."""

    kind: Literal["file"] = "file"
    path: str
    data: bytes
    last: bool


class Exited(Message):
    """The program ended. `code` is negative for a signal, as in `subprocess`; `by_event` if the scenario killed it."""

    kind: Literal["exited"] = "exited"
    code: int
    last_lines: tuple[str, ...]
    by_event: bool = False


class Collected(Message):
    """All files of the ended program have been sent."""

    kind: Literal["collected"] = "collected"
    left_out: tuple[str, ...] = ()


class Again(Message):
    """The program is done and asks whether to do the same once more; all files that it has left have been sent."""

    kind: Literal["again"] = "again"
    left_out: tuple[str, ...] = ()


class Failed(Message):
    """The agent could not do what it was told. `exit_code` is 2 where this machine cannot do it at all."""

    kind: Literal["failed"] = "failed"
    error: str
    exit_code: int = 1


class Beat(Message):
    """Answer to `Ping`."""

    kind: Literal["beat"] = "beat"


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
