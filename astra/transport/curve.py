"""Who may connect to a rank's ZeroMQ sockets: CURVE, with both sides known by their public keys.

    socket.bind  ◄── handshake, encrypted ── peer.connect         serve(socket, peers)        call(socket, peer)
        │ key                                                     before it is bound          before it connects
        ▼
    ZAP request ──► Gate's thread: is it one of `peers`? ──► yes, with its rank as User-Id; or 400, counted, logged once

The connecting side checks the bound one by its public key, the bound one asks this thread (ZAP, RFC 27). What has
passed is encrypted, authenticated, and cannot be repeated or reordered. Without keys `serve` and `call` leave sockets
as they are. A `Gate` serves one context; every context of a process needs its own.
"""

import logging
import threading
from collections.abc import Collection

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from astra.transport.keys import Keys

__all__ = ["Gate", "Handshakes", "rank_of"]

_LOGGER = logging.getLogger(__name__)

_ZAP = "inproc://zeromq.zap.01"
_FAILURES = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_TOLERATED = 3
"""Handshakes that may break off before the other side counts as one with another key; then it cannot be told from one
that is just ending."""

_Context = zmq.Context[zmq.Socket[bytes]]


class Gate:
    """The doors of one context. `keys` None: they stand open. Close it before the context is destroyed."""

    def __init__(self, context: _Context, keys: Keys | None):
        self.refused = 0
        """Handshakes with a key that is none of those that may connect."""
        self._keys = keys
        self._doors: list[frozenset[int]] = []
        self._thread: threading.Thread | None = None
        if keys is not None:
            self._ranks = {z85.decode(key): rank for rank, key in enumerate(keys.public)}
            requests = context.socket(zmq.REP)
            requests.linger = 0
            requests.bind(_ZAP)
            self._stop, stop = _pair(context, f"inproc://gate-{id(self)}")
            self._thread = threading.Thread(target=self._answer, args=(requests, stop), name="gate", daemon=True)
            self._thread.start()

    @property
    def keys(self) -> Keys | None:
        """This rank's keys, if it has any."""
        return self._keys

    def serve(self, socket: zmq.Socket[bytes], peers: Collection[int]) -> None:
        """Let only these ranks connect to a socket; call it before the socket is bound."""
        if self._keys is not None:
            self._doors.append(frozenset(peers))
            socket.curve_server = True
            socket.curve_secretkey = self._keys.secret
            socket.zap_domain = str(len(self._doors) - 1).encode()
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody comes in once nobody answers any more

    def call(self, socket: zmq.Socket[bytes], peer: int) -> None:
        """Let a socket connect to that rank only; call it before the socket connects."""
        if self._keys is not None:
            socket.curve_serverkey = self._keys.public[peer]
            socket.curve_secretkey = self._keys.secret
            socket.curve_publickey = zmq.curve_public(self._keys.secret)

    def close(self) -> None:
        """Stop answering: from now on nobody comes in; may be called again, by one thread at a time."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stop.send(b"")
            thread.join()
            self._stop.close()

    def _answer(self, requests: zmq.Socket[bytes], stop: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(requests, zmq.POLLIN)
        poller.register(stop, zmq.POLLIN)
        while stop not in dict(poller.poll()):
            version, number, domain, address, _, mechanism, *credentials = requests.recv_multipart()
            rank = self._ranks.get(credentials[0]) if mechanism == b"CURVE" and credentials else None
            if rank is None or rank not in self._doors[int(domain)]:
                self._refuse(address)
                requests.send_multipart([version, number, b"400", b"unknown key", b"", b""])
            else:
                requests.send_multipart([version, number, b"200", b"", str(rank).encode(), b""])
        requests.close()
        stop.close()

    def _refuse(self, address: bytes) -> None:
        if self.refused == 0:
            place = address.decode(errors="replace")
            _LOGGER.warning("refused a connection from %s, whose key may not connect; more are counted only", place)
        self.refused += 1


class Handshakes:
    """What became of a socket's handshakes; make it before the socket binds or connects."""

    def __init__(self, socket: zmq.Socket[bytes]):
        self.failed = 0
        """Those that ended without a connection."""
        self.hopeless = False
        """Whether the other side has refused this one, or cannot be the one that it should be."""
        self._socket = socket
        self.monitor = socket.get_monitor_socket(_FAILURES)
        """Can be read when there is news."""

    def look(self) -> None:
        """Take in what has happened; waits for nothing."""
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)["event"]
            self.failed += 1
            self.hopeless |= event != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL or self.failed >= _TOLERATED

    def close(self) -> None:
        """Stop watching; call it before the socket is closed."""
        self._socket.disable_monitor()
        self.monitor.close(linger=0)


def rank_of(frame: zmq.Frame) -> int | None:
    """Return the rank whose key a received frame came with; None where there are no keys."""
    try:
        return int(frame.get("User-Id") or "")
    except (ValueError, zmq.ZMQError):
        return None


def _pair(context: _Context, endpoint: str) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Join two sockets of this process."""
    here, there = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    here.linger = there.linger = 0
    here.bind(endpoint)
    there.connect(endpoint)
    return here, there
