"""Ports on this machine for tests that make processes or threads talk over TCP."""

import random
import socket


def free_port() -> int:
    """Find a port that nobody listens on, below those that the kernel gives to outgoing connections."""
    while True:
        port = random.SystemRandom().randint(15000, 30000)  # hypothesis seeds the other, in every suite alike
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
