"""A kernel tool that has been started early and waits for its text, so that a change takes effect on time.

Starting `tc` takes several milliseconds on a small machine, and as long again where others work: too late for
an event that is due now. Waiting, it has only to read and act.
"""

import subprocess
from collections.abc import Sequence

from testbed.errors import ShaperError, UnsupportedError
from testbed.urgency import urgent

__all__ = ["WaitingTool"]


class WaitingTool:
    """One run of a program that reads standard input to its end and then acts."""

    def __init__(self, command: Sequence[str], text: str):
        self._command, self._text = command, text
        try:
            with urgent():
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
                )
        except FileNotFoundError as error:
            raise UnsupportedError(f"program {command[0]} must be installed, got none; see testbed doctor") from error

    def act(self) -> None:
        """Let it act, and wait until it has. Raises ShaperError if it fails."""
        _, said = self._process.communicate(self._text)
        if self._process.returncode != 0:
            raise ShaperError(
                f"{' '.join(self._command)} must succeed, got status {self._process.returncode}: "
                f"{' '.join(said.split())}; see testbed doctor for what this kernel can do"
            )

    def cancel(self) -> None:
        """End it without acting."""
        self._process.kill()
        self._process.communicate()
