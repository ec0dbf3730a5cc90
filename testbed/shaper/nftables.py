"""Transactions on nftables by libnftables, the library that the program `nft` is made of.

    text --nft_run_cmd_from_buffer--> one netlink batch --> kernel, which has taken it when the call returns

Within this process, since a change that is due now cannot wait for a program: `nft` takes 7 to 17 ms to end after a
transaction that removes something, because closing its socket waits until no packet can meet what was removed. Here the
socket stays open, and a small transaction takes 0.4 ms.
"""

import ctypes

from testbed.errors import ShaperError, UnsupportedError

__all__ = ["Nftables"]

LIBRARY = "libnftables.so.1"
SHOWN_CHARACTERS = 500


class Nftables:
    """A connection to nftables of the network namespace that the calling thread is in; for one thread at a time."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise UnsupportedError(
                f"library {LIBRARY} must be installed, got none ({error}); it comes with nft (Debian: libnftables1)"
            ) from error
        self._library.nft_ctx_new.restype = ctypes.c_void_p
        self._library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def run(self, text: str) -> None:
        """Carry out one transaction. Raises ShaperError with what nftables says if the kernel does not take it."""
        if self._library.nft_run_cmd_from_buffer(self._context, text.encode()) != 0:
            said = " ".join(self._library.nft_ctx_get_error_buffer(self._context).decode(errors="replace").split())
            raise ShaperError(
                f"nftables transaction must succeed, got: {said[:SHOWN_CHARACTERS]}; see testbed doctor for what this "
                "kernel can do"
            )

    def close(self) -> None:
        """Give the connection up."""
        self._library.nft_ctx_free(self._context)
        self._context = ctypes.c_void_p()
