"""What a workload does on the controller's own machine, before any device exists: check its config, and prepare.

workload.check, workload.prepare --as the invoking user, TESTBED_CONFIG set--> exit code and what it said
"""

import contextlib
import json
import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from testbed.display import Display
from testbed.errors import InputError, TestbedError
from testbed.program import search_path
from testbed.record import Record
from testbed.runtimes import userns
from testbed.runtimes.surroundings import Identity
from testbed.scenario import Scenario

__all__ = ["check", "invoking_user", "prepare"]


def check(scenario: Scenario) -> None:
    """Let the workload check its own configuration. Raises InputError with the faults that it printed."""
    command = scenario.workload.check
    if command is None:
        return
    identity = invoking_user()
    with _config_file(scenario) as config:
        surroundings = _local_environment(identity, config)
        try:
            checked = subprocess.run(
                list(command), env=surroundings, capture_output=True, text=True, **_as_user(identity)
            )
        except OSError as error:
            raise InputError([f"workload.check: must name a program, got {command[0]!r} ({error})"]) from error
    if checked.returncode != 0:
        said = [line for line in checked.stderr.splitlines() if line.strip()]
        raise InputError([line.replace(str(config), "workload.config") for line in said] or ["workload.check failed"])


def invoking_user() -> Identity:
    """The user on whose behalf we run: under sudo the one who called it, so that programs are not root."""
    uid = os.environ.get("SUDO_UID")
    if os.geteuid() != 0 or userns.inside() or not uid or uid == "0":
        return Identity()
    try:
        entry = pwd.getpwuid(int(uid))
    except (ValueError, KeyError) as error:
        raise InputError([f"SUDO_UID: must be a user of this machine, got {uid!r}; unset it to run as root"]) from error
    return Identity(uid=entry.pw_uid, gid=entry.pw_gid, home=entry.pw_dir)


def _as_user(identity: Identity) -> dict[str, Any]:
    """Arguments by which `subprocess` starts a program as that user, with that user's groups and no others."""
    if identity.uid is None or identity.gid is None:
        return {}
    groups = os.getgrouplist(pwd.getpwuid(identity.uid).pw_name, identity.gid)
    return {"user": identity.uid, "group": identity.gid, "extra_groups": groups}


def prepare(scenario: Scenario, record: Record, display: Display, identity: Identity) -> None:
    """Run the workload's `prepare` once, here, before any device exists."""
    command = scenario.workload.prepare
    if command is None:
        return
    display.phase(f"preparing: {' '.join(command)}")
    with _config_file(scenario) as config:
        process = subprocess.Popen(
            list(command),
            env=_local_environment(identity, config),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            **_as_user(identity),
        )
        with process:
            try:
                for line in process.stdout or ():
                    record.log("prepare", line.rstrip("\n"))
                    display.say(f"  {line.rstrip()}")
            except BaseException:
                process.terminate()
                raise
    if process.returncode != 0:
        error = InputError if process.returncode == InputError.exit_code else TestbedError
        message = (
            f"workload.prepare: {' '.join(command)} ended with exit code {process.returncode}; see logs/prepare.log"
        )
        raise error([message]) if error is InputError else TestbedError(message)


@contextlib.contextmanager
def _config_file(scenario: Scenario) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="testbed-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o755)
        config = folder / "config.json"
        config.write_text(json.dumps(scenario.workload.config))
        yield config


def _local_environment(identity: Identity, config: Path) -> dict[str, str]:
    """Environment of a program that runs on the controller's own machine (check, prepare)."""
    return {**os.environ, **identity.environment(), "PATH": search_path(), "TESTBED_CONFIG": str(config)}
