"""Open the control plane where the environment says, never over a shaped link if there is another way.

CONTROL_ENDPOINT, a ZeroMQ endpoint that rank 0 binds: beside the data network       a testbed sets it
tcp://MASTER_ADDR:MASTER_PORT without it: on the data network                        real devices
"""

import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import zmq

from astra.control.guest import Guest
from astra.control.host import Host
from astra.control.plane import Control, Limits, alone
from astra.control.presence import Presence
from astra.environment import Environment
from astra.errors import TransportError
from astra.transport.curve import Gate
from astra.transport.keys import Keys
from astra.transport.rendezvous import Place, own_address

__all__ = ["OpenControl", "open_control", "without_control"]

OpenControl = Callable[[Environment, Limits], Control]


def open_control(environment: Environment, limits: Limits) -> Control:
    """Make this rank's end; it begins to report once it is entered.

    Raises:
        TransportError: The endpoint cannot be used.
    """
    if environment.world_size == 1:
        return alone(1)
    keys = None
    if environment.curve_keys is not None:
        keys = Keys.read(environment.curve_keys, environment.rank, environment.world_size)
    place = Place(environment.rank, environment.world_size, environment.master_addr, environment.master_port)
    address = own_address(place)
    endpoint = _resolved(environment.control_endpoint or f"tcp://{environment.master_addr}:{environment.master_port}")
    port = urlsplit(endpoint).port if endpoint.startswith("tcp:") else None
    presence = Presence(environment.rank, environment.device, address, port or 0)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    gate = Gate(context, keys)
    if environment.rank == 0:
        return Host(presence, environment.world_size, endpoint, limits, address=address, context=context, gate=gate)
    return Guest(presence, endpoint, limits, context=context, gate=gate)


def without_control(environment: Environment, limits: Limits) -> Control:
    """Stand in for it where ranks are threads of one process."""
    return alone(environment.world_size)


def _resolved(endpoint: str) -> str:
    """Return the endpoint with an address instead of a name, as rank 0 needs it to listen there."""
    if not endpoint.startswith("tcp:"):
        return endpoint
    parts = urlsplit(endpoint)
    try:
        return f"tcp://{socket.gethostbyname(parts.hostname or '')}:{parts.port}"
    except (OSError, ValueError) as error:
        raise TransportError(
            f"control endpoint: must be ipc:// and a path or tcp://ADDRESS:PORT, got {endpoint!r} ({error}); "
            "see CONTROL_ENDPOINT, MASTER_ADDR and MASTER_PORT"
        ) from error
