"""What a device is like as a container, whoever makes it: docker.py, render.py, docker-compose.yml, images/stack.yml.

image (images/Dockerfile) ── agent as process 1, root with CAPABILITIES, on a read-only file system
                          └─ program as the image's user, without capabilities
"""

import os
from pathlib import Path

from testbed.errors import InputError
from testbed.keys import AGENT_FILE
from testbed.runtimes.surroundings import Identity, Surroundings

__all__ = [
    "AGENT_FOLDER",
    "AGENT_KEYS",
    "CACHE_FOLDER",
    "CAPABILITIES",
    "CONTROL_PORT",
    "KEYS_FOLDER",
    "PROGRAM",
    "SECURITY_OPTIONS",
    "TMPFS",
    "image_name",
]

IMAGES = {"cpu": "astra-testbed:latest", "cuda": "astra-testbed:cuda"}
"""As images/build names them."""
IMAGE_VARIABLE = "TESTBED_IMAGE"
CONTROL_PORT = 29401
"""Where the controller listens, on a network that only it and its agents have."""
CAPABILITIES = ("NET_ADMIN", "SETUID", "SETGID", "SETPCAP", "KILL", "CHOWN", "DAC_OVERRIDE")
"""To shape links; to become another user without capabilities; to stop that user's processes and take their files."""
SECURITY_OPTIONS = ("no-new-privileges:true",)
PROGRAM = Surroundings(Identity(uid=10001, gid=10001, home="/home/program"), Path("/home/program"))
"""The image's user (images/Dockerfile) and its folder, which it may write to."""
AGENT_FOLDER = "/run/testbed"
CACHE_FOLDER = "/cache"
"""Where the image looks for what `prepare` kept."""
KEYS_FOLDER = "/keys"
"""Where an agent's keys are, and in Compose and Swarm the controller's."""
AGENT_KEYS = f"{KEYS_FOLDER}/{AGENT_FILE}"
TMPFS = {
    AGENT_FOLDER: "mode=755",
    "/run/lock": "mode=1777",
    "/tmp": "mode=1777",  # noqa: S108  # the container's own
    "/home/program": "mode=700,uid=10001,gid=10001",
}
"""The places that can be written to, and their mount options."""


def image_name(accelerator: str) -> str:
    """Return the image for `cpu` or `cuda`: `$TESTBED_IMAGE`, or what images/build makes.

    Raises InputError if the variable is there and empty.
    """
    name = os.environ.get(IMAGE_VARIABLE, IMAGES[accelerator])
    if not name:
        raise InputError(
            [f"environment: {IMAGE_VARIABLE} must name an image, got ''; unset it for {IMAGES[accelerator]}"]
        )
    return name
