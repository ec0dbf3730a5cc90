"""The on-disk trace of a run's devices, written before anything is made, so that a crash can be cleaned up.

    <state folder>/<run id>/state.json      who made it, which processes belong to it
                            control.sock    where agents find the controller
                            <device>/       working folder of one agent

The state folder is `$TESTBED_STATE_DIR`, else `/run/testbed` for root, else one in the folder for temporary files (an
unprivileged run hides `/run` behind its own, see `userns.py`).
Reads and writes files and asks whether processes live; makes and removes no devices.
"""

import json
import os
import secrets
import shutil
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

__all__ = ["ProcessId", "RunState", "new_run_id", "state_folder"]


@dataclass(frozen=True)
class ProcessId:
    """A process id with the process's start time, so that a reused number is not taken for the same process."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> "ProcessId":
        """Identify a living process. Raises ProcessLookupError if there is none."""
        return cls(pid, _start_ticks(pid))

    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        try:
            return _start_ticks(self.pid) == self.start_ticks
        except ProcessLookupError:
            return False


def _start_ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessLookupError(pid) from error
    if fields[0] in {"Z", "X"}:
        raise ProcessLookupError(pid)
    return int(fields[19])


@dataclass(frozen=True)
class RunState:
    """What another process must know to look at, enter or remove a run's devices."""

    run_id: str
    name: str
    runtime: str
    devices: tuple[str, ...]
    controller: ProcessId
    held: bool = False
    """True once `testbed up` has left the devices running on their own."""
    agents: dict[str, ProcessId] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    scenario: str = ""
    """The resolved scenario as YAML."""
    results: str = ""
    """The run folder, absolute; empty for `testbed up`."""

    @property
    def folder(self) -> Path:
        """Where this state lives."""
        return state_folder() / self.run_id

    def abandoned(self) -> bool:
        """Whether nobody looks after these devices any more."""
        return not self.held and not self.controller.alive()

    def with_changes(self, **changes: object) -> "RunState":
        """Return a changed copy, written to disk."""
        changed = replace(self, **changes)  # type: ignore[arg-type]
        changed.save()
        return changed

    def save(self) -> None:
        """Write atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # whatever our umask: programs of another user have their sockets below
        partial = self.folder / "state.json.partial"
        partial.write_text(json.dumps(asdict(self), indent=1))
        partial.rename(self.folder / "state.json")

    def forget(self) -> None:
        """Delete the run's folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @classmethod
    def load_all(cls) -> list["RunState"]:
        """Read every run that left a trace, in order of their ids.

        A state that is damaged is that of an abandoned run without agents: what bears its id can still be removed.
        One that another version wrote, or that has gone meanwhile, is passed over.
        """
        states = []
        for path in sorted(state_folder().glob("*/state.json")):
            try:
                states.append(cls._read(path))
            except json.JSONDecodeError:
                nobody = ProcessId(0, 0)
                states.append(cls(path.parent.name, "(damaged state)", "netns", devices=(), controller=nobody))
            except (OSError, KeyError, TypeError):
                continue
        return states

    @classmethod
    def find(cls, run_id: str) -> "RunState | None":
        """Read one run again; None if it has gone, or cannot be read."""
        try:
            return cls._read(state_folder() / run_id / "state.json")
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @classmethod
    def _read(cls, path: Path) -> "RunState":
        raw = json.loads(path.read_text())
        parts = {
            "devices": tuple(raw["devices"]),
            "controller": ProcessId(**raw["controller"]),
            "agents": {name: ProcessId(**process) for name, process in raw["agents"].items()},
        }
        return cls(**{**raw, **parts})


def new_run_id() -> str:
    """Return a short id that no other run on this machine has."""
    while True:
        run_id = secrets.token_hex(3)
        if not (state_folder() / run_id).exists():
            return run_id


def state_folder() -> Path:
    """Return the folder that holds the state of all runs of this user."""
    if chosen := os.environ.get("TESTBED_STATE_DIR"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/run/testbed")
    return Path(tempfile.gettempdir()) / f"testbed-{os.geteuid()}"
