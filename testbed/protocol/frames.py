"""Messages between controller and agents as ZeroMQ frames: `[version, fields]` in msgpack."""

from typing import Annotated, Any

import msgpack
from pydantic import Field, TypeAdapter

from testbed.protocol.from_agents import AgentMessage
from testbed.protocol.message import Message
from testbed.protocol.to_agents import ControllerMessage

__all__ = ["MESSAGE_LIMIT_BYTES", "decode_agent", "decode_controller", "encode"]

MESSAGE_LIMIT_BYTES = 64 << 20
"""Whoever sends a larger message is cut off. Loss patterns and a program's config are the largest that are ours."""

_agent_adapter: TypeAdapter[AgentMessage] = TypeAdapter(Annotated[AgentMessage, Field(discriminator="kind")])
_controller_adapter: TypeAdapter[ControllerMessage] = TypeAdapter(
    Annotated[ControllerMessage, Field(discriminator="kind")]
)


def encode(message: AgentMessage | ControllerMessage) -> bytes:
    """Turn a message into one ZeroMQ frame."""
    frame: bytes = msgpack.packb([Message.version, message.model_dump()])
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
    if version != Message.version:
        raise ValueError(f"control message must be version {Message.version}, got {version!r}")
    return fields
