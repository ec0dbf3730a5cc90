"""Worlds of connected transports for tests: threads of one process, or loopback TCP."""

import threading
from collections.abc import Callable

from loopback import free_port

from astra.transport import inproc, zeromq
from astra.transport.framed import FramedTransport
from astra.transport.keys import make_keys

CONNECT_TIMEOUT_S = 20.0


def in_threads(calls: list[Callable[[], object]]) -> list[object]:
    """Run calls side by side; an exception stands in the place of its result."""
    results: list[object] = [None] * len(calls)

    def run(position: int) -> None:
        try:
            results[position] = calls[position]()
        except Exception as error:  # noqa: BLE001 -- handed to the test
            results[position] = error

    threads = [threading.Thread(target=run, args=(position,), daemon=True) for position in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def connect_zeromq(world_size: int, *, with_keys: bool = False) -> list[FramedTransport]:
    """Connect ranks over loopback, each from a thread of its own."""
    port = free_port()
    keys = make_keys(world_size) if with_keys else [None] * world_size
    made = in_threads(
        [
            lambda rank=rank: zeromq.connect(rank, world_size, "127.0.0.1", port, CONNECT_TIMEOUT_S, keys=keys[rank])
            for rank in range(world_size)
        ]
    )
    transports = [transport for transport in made if isinstance(transport, FramedTransport)]
    assert len(transports) == world_size, made
    return transports


CONNECTORS: dict[str, Callable[[int], list[FramedTransport]]] = {
    "inproc": lambda world_size: list(inproc.connect(world_size)),
    "zeromq": connect_zeromq,
    "zeromq with keys": lambda world_size: connect_zeromq(world_size, with_keys=True),
}
