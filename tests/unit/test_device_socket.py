"""The Unix socket between a program and its agent."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from testbed.device_socket import DeviceSocket
from testbed.protocol.calls import Call


async def with_socket(path: Path, use: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[Any]]) -> Any:
    async def handler(call: Call) -> dict[str, Any]:
        return {"heard": call.op}

    server = DeviceSocket(path, handler)
    await server.open(uid=None)
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        return await asyncio.wait_for(use(reader, writer), 10)
    finally:
        writer.close()
        await server.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> Any:
    writer.write(line + b"\n")
    return json.loads(await reader.readline())


def test_device_socket_answers_each_call_in_order(tmp_path: Path) -> None:
    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[Any]:
        row = await ask(reader, writer, b'{"op": "row", "table": "summary", "row": {"a": 1, "b": null}}')
        mark = await ask(reader, writer, b'{"op": "mark", "name": "begin"}')
        return [row, mark]

    replies = asyncio.run(with_socket(tmp_path / "s", use))
    assert replies == [{"ok": True, "heard": "row"}, {"ok": True, "heard": "mark"}]


def test_device_socket_refuses_bad_calls_and_goes_on(tmp_path: Path) -> None:
    bad = [b"{", b"[]", b'{"op": "explode"}', b'{"op": "row", "table": "../x", "row": {}}', b'{"op": "mark"}', b"\xff"]
    bad += [b'{"op": "row", "table": "summary", "row": {"a": %s}}' % value for value in (b"NaN", b"1e999")]
    bad += [b'{"op": "row", "table": "links", "row": {"a": 1}}']

    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[Any]:
        replies = [await ask(reader, writer, line) for line in bad]
        return [*replies, await ask(reader, writer, b'{"op": "barrier", "name": "x"}')]

    *refused, accepted = asyncio.run(with_socket(tmp_path / "s", use))
    assert all(not reply["ok"] and reply["error"] for reply in refused)
    assert accepted["ok"]


def test_device_socket_hangs_up_on_an_endless_line(tmp_path: Path) -> None:
    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"x" * (2 << 20))
        with contextlib.suppress(ConnectionResetError):  # the rest of the line was never read
            return await reader.readline()
        return b""

    reply = asyncio.run(with_socket(tmp_path / "s", use))
    assert not reply or not json.loads(reply)["ok"]


def test_device_socket_is_for_its_user_only(tmp_path: Path) -> None:
    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        return (tmp_path / "s").stat().st_mode & 0o777

    assert asyncio.run(with_socket(tmp_path / "s", use)) == 0o600
    assert not (tmp_path / "s").exists()
