"""The Docker engine of this machine: reach it, examine it, and give what it refuses a name.

With `docker.py`, which makes devices of it, the only importer of the Docker SDK.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import docker
from docker.errors import APIError, DockerException, NotFound

from testbed.errors import RuntimeFailureError, UnsupportedError

__all__ = ["Engine", "asking", "connect", "gone_is_fine", "inspect_engine"]

DEFAULT_HOST = "unix:///var/run/docker.sock"


@dataclass(frozen=True)
class Engine:
    """What `testbed doctor` wants to know of the engine."""

    version: str
    cgroup_version: str
    has_gpus: bool
    """Whether NVIDIA's container toolkit has given it a runtime."""
    images: tuple[str, ...]


def inspect_engine() -> Engine:
    """Ask the engine about itself. Raises UnsupportedError if it does not answer."""
    with contextlib.closing(connect()) as client:
        facts = client.info()
        tags = [tag for image in client.api.images() for tag in image["RepoTags"] or ()]
    version, cgroup_version = str(facts["ServerVersion"]), str(facts.get("CgroupVersion", "1"))
    return Engine(version, cgroup_version, "nvidia" in facts.get("Runtimes", {}), tuple(tags))


def connect() -> docker.DockerClient:
    """Connect to the engine at $DOCKER_HOST, or at the usual place. Raises UnsupportedError if it does not answer."""
    host = os.environ.get("DOCKER_HOST") or DEFAULT_HOST
    try:
        if host.startswith("unix://"):  # tried first, because the SDK buries the reason and leaks the socket
            with socket.socket(socket.AF_UNIX) as trial:
                trial.connect(host.removeprefix("unix://"))
        return docker.from_env()
    except (DockerException, OSError) as error:
        denied = isinstance(error, PermissionError)
        todo = "join the group docker, or be root" if denied else "install Docker Engine 20.10 or newer and start it"
        message = f"docker: an engine must answer at {host}, got {error}; {todo} (--runtime netns needs none)"
        raise UnsupportedError(message) from error


@contextlib.contextmanager
def asking(attempt: str) -> Iterator[None]:
    """Give the engine's refusals a name."""
    try:
        yield
    except DockerException as error:
        said = error.explanation if isinstance(error, APIError) else str(error)
        raise RuntimeFailureError(f"docker: engine must {attempt}, got {said!r}") from error


@contextlib.contextmanager
def gone_is_fine() -> Iterator[None]:
    """Pass over what somebody else has removed, or is removing at this moment."""
    try:
        yield
    except NotFound:
        pass
    except APIError as error:
        if error.status_code not in (403, 409):  # still in use, or removal in progress: the next round finds it
            raise
