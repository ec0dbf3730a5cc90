"""An agent's end of the line to its controller: one DEALER, encrypted where there are keys.

    key file ──► ControllerLine ══ CURVE ══► controller's ROUTER, which lets in only the run's agents

The file may come later than the agent, and may be left from an earlier run until the controller replaces it (Compose
keeps volumes), so it is looked at again for as long as nobody answers. Does not know what messages mean.
"""

import math
from pathlib import Path

import zmq
import zmq.asyncio

from testbed.keys import ControlKeys
from testbed.protocol.frames import MESSAGE_LIMIT_BYTES
from testbed.retrying import retried

__all__ = ["ControllerLine"]

LINGER_MS = 1000
KEYS_PERIOD_S = 0.2


class ControllerLine:
    """The line; belongs to one event loop."""

    def __init__(self, endpoint: str, identity: str, keys: Path | None, *, keys_timeout_s: float = math.inf):
        self._endpoint, self._keys = endpoint, keys
        self._known: ControlKeys | None = None
        found = None if keys is None else _wait_for(keys, keys_timeout_s)
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, identity.encode())
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_LIMIT_BYTES)
        if found is not None:
            self._take(found)
        self._socket.connect(endpoint)

    async def send(self, frame: bytes, flags: int = 0) -> None:
        """Send one frame; with `zmq.NOBLOCK` raise `zmq.Again` where nobody is there."""
        await self._socket.send(frame, flags)

    async def receive(self) -> bytes:
        """Wait for one frame."""
        frame: bytes = await self._socket.recv()
        return frame

    def renew(self) -> None:
        """Call again with the keys that the file holds by now, if they are others."""
        if self._keys is None:
            return
        try:
            found = ControlKeys.read(self._keys)
        except FileNotFoundError:
            return  # of a run that has ended; the next one writes its own
        if found != self._known:
            self._socket.disconnect(self._endpoint)
            self._take(found)
            self._socket.connect(self._endpoint)

    def close(self) -> None:
        """Hang up, once what was sent has left."""
        self._context.destroy(linger=LINGER_MS)

    def _take(self, keys: ControlKeys) -> None:
        self._known = keys
        self._socket.setsockopt(zmq.CURVE_SERVERKEY, keys.peer.encode())
        self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
        self._socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)


def _wait_for(path: Path, timeout_s: float) -> ControlKeys:
    """Read a key file that the controller may still have to write. Raises DeviceError, InputError."""
    return retried(
        lambda: ControlKeys.read(path),
        while_raising=FileNotFoundError,
        timeout_s=timeout_s,
        period_s=KEYS_PERIOD_S,
        complaint=lambda _: f"--keys: {path} must be there within {timeout_s:g} s, got nothing; see docs/security.md",
    )
