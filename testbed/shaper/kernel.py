"""The programs and sockets by which one network namespace is changed and read, and what is said when they fail.

    Shaper and its parts ──tc, nft, run──> iproute2, libnftables, ethtool ──> kernel
                         <──read── netlink

Every failure is a ShaperError with device, interface and what was attempted. Knows nothing of links.
"""

import contextlib
import reprlib
import socket
import subprocess
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from testbed.errors import ShaperError, UnsupportedError
from testbed.shaper.netlink import KernelReader
from testbed.shaper.nftables import Nftables
from testbed.shaper.readback import Difference

__all__ = ["Kernel", "interface_index"]

T = TypeVar("T")


class Kernel:
    """The way to the kernel for the rules of one interface; what it needs is opened at the first use."""

    def __init__(self, interface: str):
        self.interface = interface
        self.device = "(not shaped yet)"
        """Whose rules these are, for errors."""
        self._reader: KernelReader | None = None
        self._nftables: Nftables | None = None

    def read(self, read: Callable[[KernelReader], T]) -> T:
        """Let `read` ask the kernel."""
        if self._reader is None:
            self._reader = KernelReader()
        try:
            return read(self._reader)
        except OSError as error:
            raise ShaperError(f"device {self.device}, {self.interface}: reading the kernel failed: {error}") from error

    def tc(self, commands: Iterable[str]) -> None:
        """Carry out commands of `tc`, in one run of it."""
        self.run(["tc", "-batch", "-"], "\n".join(commands) + "\n")

    def nft(self, text: str) -> None:
        """Carry out one transaction on nftables."""
        if self._nftables is None:
            self._nftables = Nftables()
        try:
            self._nftables.run(text)
        except ShaperError as error:
            raise ShaperError(f"device {self.device}, {self.interface}: {error}") from error

    def run(self, command: Sequence[str], text: str = "") -> str:
        """Run a program to its end, with `text` as its input; return what it prints."""
        try:
            done = subprocess.run(command, input=text, capture_output=True, text=True)
        except FileNotFoundError as error:
            message = f"device {self.device}: program {command[0]} must be installed, got none; see testbed doctor"
            raise UnsupportedError(message) from error
        if done.returncode != 0:
            said = " ".join(done.stderr.split())
            raise ShaperError(
                f"device {self.device}, {self.interface}: {' '.join(command)} must succeed, got status "
                f"{done.returncode}: {said}; see testbed doctor for what this kernel can do"
            )
        return done.stdout

    def complain(self, found: Sequence[tuple[str, Difference]]) -> None:
        """Raise ShaperError if what was read back differs anywhere; each difference comes with its interface."""
        if found:
            lines = [
                f"device {self.device}, {where}: {field} must be {reprlib.repr(asked)}, got {reprlib.repr(got)}; "
                "the kernel or a program of iproute2 or nftables did not keep it"
                for where, (field, asked, got) in found
            ]
            raise ShaperError("\n".join(lines))

    def close(self) -> None:
        """Give everything up that was opened; idempotent."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._nftables is not None:
            self._nftables.close()
            self._nftables = None


def interface_index(name: str) -> list[int]:
    """Return the index of an interface, or nothing if there is none."""
    with contextlib.suppress(OSError):
        return [socket.if_nametoindex(name)]
    return []
