"""Run the whole program inside a user namespace, for users who are not root.

Inside, the user is root over namespaces of their own and nothing else: `ip netns`, `tc` and `nft` work as they are, and
all of it vanishes with the last process. `/run` is a fresh tmpfs there, since `ip netns` needs to write to it.
"""

import os
import shutil
import subprocess
import sys
from typing import NoReturn

from testbed.errors import UnsupportedError
from testbed.runtimes.state import state_folder

__all__ = ["enter", "inside", "needed"]

_MARK = "TESTBED_USER_NAMESPACE"
_UNSHARE = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--propagation", "private"]


def needed() -> bool:
    """Whether network namespaces can only be had by way of a user namespace."""
    return os.geteuid() != 0


def inside() -> bool:
    """Whether this process was started by `enter`."""
    return _MARK in os.environ


def enter() -> NoReturn:
    """Start this very command line again inside a user namespace; does not return.

    Raises UnsupportedError if the kernel allows no user namespaces.
    """
    folder = state_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise UnsupportedError(f"{folder}: owner must be you, got uid {folder.stat().st_uid}; remove that folder")
    tried = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True) if shutil.which("unshare") else None
    if tried is None or tried.returncode != 0:
        raise UnsupportedError(
            "user namespaces: must be allowed for users who are not root, got "
            f"{(tried.stderr.strip() if tried else 'no program unshare')!r}; run as root, or allow them (sysctl "
            "user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)"
        )
    environment = {**os.environ, _MARK: "1", "TESTBED_STATE_DIR": str(folder)}
    script = 'mount -t tmpfs tmpfs /run && exec "$@"'
    command = [*_UNSHARE, "sh", "-c", script, "sh", sys.executable, "-m", "testbed", *sys.argv[1:]]
    os.execvpe(command[0], command, environment)  # noqa: S606  (no shell parses anything of the user's)
