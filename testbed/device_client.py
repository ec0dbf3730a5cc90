"""The program's end of the device socket: JSON lines to the agent, one reply each."""

import json
import socket
from typing import Any

__all__ = ["DeviceClient"]


class DeviceClient:
    """A connection to the agent of the device that this program runs on."""

    def __init__(self, path: str):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rw", encoding="utf-8")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and return its reply. Raises RuntimeError where the agent refuses it or has gone."""
        self._lines.write(json.dumps(request) + "\n")
        self._lines.flush()
        reply: dict[str, Any] = json.loads(self._lines.readline() or '{"ok": false, "error": "the agent has gone"}')
        if not reply["ok"]:
            raise RuntimeError(f"device socket: {request['op']} must be accepted, got {reply['error']!r}")
        return reply

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()
