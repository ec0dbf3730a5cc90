"""The controller's end of the conversation with its agents: a socket, and who is at the other end of it.

    Fleet --send(name, message)--> Mailbox (ROUTER) --msgpack--> agent's DEALER
          <--receive: (name, message), ...    │
                                              └── ZAP: with keys, nobody is let in but who has those of the run's agents

Drops, counts and logs (once for each kind) what no agent of ours can have sent. Does not know what messages mean.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import zmq
from zmq.utils import z85

from testbed.errors import RuntimeFailureError
from testbed.keys import ControlKeys
from testbed.protocol.frames import MESSAGE_LIMIT_BYTES, decode_agent, encode
from testbed.protocol.from_agents import AgentMessage
from testbed.protocol.to_agents import Bye, ControllerMessage
from testbed.roster import Roster

__all__ = ["Mailbox"]

LINGER_MS = 500
_ZAP = "inproc://zeromq.zap.01"
_DOMAIN = b"agents"
SHOWN_CHARS = 200
"""Of why a frame was dropped: it may quote what a stranger sent."""


class Mailbox:
    """A bound socket; `log` takes a line about what went wrong without being the run's end."""

    def __init__(self, names: Sequence[str], log: Callable[[str], None], keys: ControlKeys | None = None):
        self.roster = Roster(names)
        self.dropped: Counter[str] = Counter()
        """Frames that were not of ours, and connections that were refused, by kind."""
        self._log = log
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_LIMIT_BYTES)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._requests = None if keys is None else self._lock(keys)

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
        while ready := dict(self._poller.poll(timeout_ms)):
            timeout_ms = 0
            if self._requests is not None and self._requests in ready:
                self._let_in(self._requests)
            if self._socket not in ready:
                continue
            connection, *frames = self._socket.recv_multipart()
            try:
                (frame,) = frames
                message = decode_agent(frame)
            except ValueError as error:
                self._drop("malformed", f"a frame from {connection!r}: {str(error)[:SHOWN_CHARS]}")
                continue
            name = self.roster.recognise(connection, message)
            if name is None:
                self._drop("unknown", f"a frame from unknown device {connection!r}")
                continue
            yield name, message

    def _send(self, connection: bytes, message: ControllerMessage) -> None:
        try:
            self._socket.send_multipart([connection, encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # An agent that died is reported with its status by the fleet; a ping to it is not the news.
            self._log(f"could not send {message.kind} to {connection!r}: {error}")

    def _drop(self, kind: str, what: str) -> None:
        if self.dropped[kind] == 0:
            self._log(f"dropped {what}; more of this kind are counted but not logged")
        self.dropped[kind] += 1

    # Who may come in

    def _lock(self, keys: ControlKeys) -> zmq.Socket[bytes]:
        """Make the socket one that asks here (ZAP, RFC 27) whether a caller's key is known."""
        requests = self._context.socket(zmq.REP)
        requests.bind(_ZAP)
        self._poller.register(requests, zmq.POLLIN)
        self._socket.setsockopt(zmq.CURVE_SERVER, 1)
        self._socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret.encode())
        self._socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
        self._socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        return requests

    def _let_in(self, requests: zmq.Socket[bytes]) -> None:
        assert self._keys is not None
        version, number, _, address, _, mechanism, *credentials = requests.recv_multipart()
        if mechanism == b"CURVE" and credentials == [z85.decode(self._keys.peer.encode())]:
            requests.send_multipart([version, number, b"200", b"", b"agent", b""])
        else:
            requests.send_multipart([version, number, b"400", b"unknown key", b"", b""])
            self._drop("refused", f"a connection from {address.decode(errors='replace')} with another key")
