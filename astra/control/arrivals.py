"""When the kernel last got data from a peer: a slow link brings packets long before a whole frame.

    /proc/self/fd ──TCP sockets to that address──TCP_INFO──► milliseconds since the last segment with data

Asked only by who has waited for a while. Linux only; elsewhere nothing is known.
"""

import contextlib
import os
import socket
import stat
import struct
from pathlib import Path

__all__ = ["since_last_data_s"]

_LAST_DATA_RECV_AT = 52
"""Offset of tcpi_last_data_recv in the kernel's struct tcp_info (linux/tcp.h), which only ever grows at its end."""
_NUMBER = struct.Struct("=I")


def since_last_data_s(address: str, but_port: int) -> float | None:
    """Return the seconds since any TCP connection of this process to an address had data; None if it has none.

    Args:
        address: IPv4 address of the other end.
        but_port: A port at either end whose connections do not count.
    """
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile, or no TCP
            age_s = _age_s(int(entry.name), address, but_port)
            if age_s is not None:
                found.append(age_s)
    return min(found, default=None)


def _age_s(descriptor: int, address: str, but_port: int) -> float | None:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return None
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        if connection.family != socket.AF_INET or connection.type != socket.SOCK_STREAM:
            return None
        ports = (connection.getsockname()[1], connection.getpeername()[1])
        if connection.getpeername()[0] != address or but_port in ports:
            return None
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECV_AT + _NUMBER.size)
        return float(_NUMBER.unpack_from(info, _LAST_DATA_RECV_AT)[0]) / 1000
