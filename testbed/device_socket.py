"""The Unix socket by which a program on a device reports and asks.

    program --{"op": "row" | "mark" | "progress" | "barrier" | "again", ...}\\n--> agent --> controller
            <--{"ok": true, ...}\\n--------------------------------------

JSON lines, one reply a request, so that a shell script can take part. Holds no state but the open connections.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from testbed.protocol.calls import Call, DeviceCall, describe_fault

__all__ = ["DeviceSocket"]

REQUEST_LIMIT_BYTES = 1 << 20

Handler = Callable[[Call], Awaitable[dict[str, Any]]]


class DeviceSocket:
    """A server of device calls."""

    def __init__(self, path: Path, handler: Handler):
        self.path = path
        self.refused = 0
        """Requests that were none."""
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def open(self, uid: int | None) -> None:
        """Listen; only the program's user (or root) may connect."""
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, self.path, limit=REQUEST_LIMIT_BYTES)
        self.path.chmod(0o600)
        if uid is not None:
            os.chown(self.path, uid, -1)

    async def close(self) -> None:
        """Hang up on everybody, stop listening and remove the socket."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            await self._converse(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the program has gone, or we hang up; how it ended is reported by whoever watches it
        finally:
            self._connections.discard(connection)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                line = await reader.readline()
            except ValueError:
                self.refused += 1
                await _reply(writer, {"ok": False, "error": f"request must be under {REQUEST_LIMIT_BYTES} bytes"})
                return
            if not line:
                return
            await _reply(writer, await self._answer(line))

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            call = DeviceCall.validate_json(line)
        except ValidationError as error:
            self.refused += 1
            return {"ok": False, "error": describe_fault(error)}
        return {"ok": True, **await self._handler(call)}


async def _reply(writer: asyncio.StreamWriter, reply: dict[str, Any]) -> None:
    writer.write(json.dumps(reply).encode() + b"\n")
    await writer.drain()
