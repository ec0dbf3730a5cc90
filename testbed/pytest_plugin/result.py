"""What a run came to, as its folder says."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

__all__ = ["RunResult", "Value"]

Value = str | int | float | bool | None


@dataclass(frozen=True)
class RunResult:
    """A run that has ended."""

    folder: Path
    """The run folder; absent if the run was refused."""
    exit_code: int
    """0 success, 1 failed or an expectation not met, 2 refused; negative: ended by that signal."""
    output: str
    """What `testbed run` printed."""

    @property
    def ok(self) -> bool:
        """Whether it ran to its end and met what its scenario expects."""
        return self.exit_code == 0

    @property
    def status(self) -> str:
        """`ok`, `failed`, `interrupted`, `running` (killed), or `refused`."""
        return str(self._said.get("status", "refused"))

    @property
    def error(self) -> str | None:
        """Why it did not come to its end."""
        return self._said.get("error")

    @property
    def summary(self) -> list[dict[str, Value]]:
        """The rows of summary.csv, such as one a strategy, with numbers as numbers."""
        return list(self._said.get("rows", ()))

    @property
    def unmet(self) -> list[str]:
        """What the scenario expects and did not get."""
        return [verdict["text"] for verdict in self._said.get("expectations", ()) if not verdict["met"]]

    def row(self, **where: Value) -> dict[str, Value]:
        """Return the one row of the summary that has these values. Raises LookupError if there is not one."""
        found = [row for row in self.summary if all(row.get(name) == value for name, value in where.items())]
        if len(found) != 1:
            there = "; ".join(_names(row) for row in self.summary) or "none"
            raise LookupError(f"where: must choose one row of the summary, got {len(found)} for {where}; rows: {there}")
        return found[0]

    def table(self, name: str) -> "pandas.DataFrame":
        """Read a table of the run folder: requests, links, calibration, events, marks, …

        Raises FileNotFoundError with the names of those that are there.
        """
        import pandas

        path = self.folder / f"{name}.csv"
        if not path.is_file():
            there = ", ".join(sorted(file.stem for file in self.folder.glob("*.csv"))) or "none"
            raise FileNotFoundError(f"table: must be one of {there}, got {name!r}")
        return pandas.read_csv(path, keep_default_na=False, na_values=[""])

    def log(self, device: str) -> str:
        """Return what the program on a device printed."""
        path = self.folder / "logs" / f"{device}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def reason(self) -> str:
        """Say why it is not ok, as far as anybody knows."""
        if self.unmet:
            return "\n".join(self.unmet)
        if self.error:
            return self.error
        last = [line for line in self.output.splitlines() if line.strip()][-1:]
        return "\n".join([f"testbed run ended with exit code {self.exit_code}", *last])

    @cached_property
    def _said(self) -> Mapping[str, Any]:
        from testbed.run_folder import SUMMARY_FILE, read_object  # it knows YAML, which takes time to load

        try:
            return read_object(self.folder / SUMMARY_FILE)
        except FileNotFoundError:
            return {}


def _names(row: Mapping[str, Value]) -> str:
    return ", ".join(f"{name}={value}" for name, value in row.items() if isinstance(value, str) and value)
