"""The controller's end of the conversation with its agents: a socket, and who is at the other end of it.

    Fleet --send(name, message)--> Mailbox (ROUTER) --msgpack--> agent's DEALER
          <--receive: (name, message), ...

Drops and logs what no agent of ours can have sent. Does not know what messages mean.
"""

from collections.abc import Callable, Iterator, Sequence

import zmq

from testbed.errors import RuntimeFailureError
from testbed.protocol import AgentMessage, Bye, ControllerMessage, decode_agent, encode
from testbed.roster import Roster

__all__ = ["Mailbox"]

LINGER_MS = 500


class Mailbox:
    """A bound socket; `log` takes a line about what went wrong without being the run's end."""

    def __init__(self, names: Sequence[str], log: Callable[[str], None]):
        self.roster = Roster(names)
        self._log = log
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)

    def bind(self, endpoint: str) -> None:
        """Listen. Raises RuntimeFailureError."""
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise RuntimeFailureError(
                f"controller: must be able to listen at {endpoint}, got {error}; a Docker engine has to run on this "
                "very machine (not in a virtual machine of its own), or use docker compose"
            ) from error

    def close(self) -> None:
        """Send away agents for whom there was no device, and hang up."""
        for connection in self.roster.surplus:
            self._send(connection, Bye())
        self._context.destroy(linger=LINGER_MS)

    def send(self, name: str, message: ControllerMessage) -> None:
        """Send to the agent of a device; one that has gone is a line in the log."""
        self._send(self.roster.connection(name), message)

    def receive(self, timeout_ms: int) -> Iterator[tuple[str, AgentMessage]]:
        """Yield the messages that are there, waiting up to `timeout_ms` for the first."""
        while self._socket.poll(timeout_ms):
            timeout_ms = 0
            connection, frame = self._socket.recv_multipart()
            try:
                message = decode_agent(frame)
            except ValueError as error:
                self._log(f"dropped a frame from {connection!r}: {error}")
                continue
            name = self.roster.recognise(connection, message)
            if name is None:
                self._log(f"dropped a frame from unknown device {connection!r}")
                continue
            yield name, message

    def _send(self, connection: bytes, message: ControllerMessage) -> None:
        try:
            self._socket.send_multipart([connection, encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # An agent that died is reported with its status by the fleet; a ping to it is not the news.
            self._log(f"could not send {message.kind} to {connection!r}: {error}")
