"""How commands speak, fail and find their config. Alone prints, besides the commands themselves."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from astra.errors import AstraError, ConfigError

__all__ = [
    "CONFIG_VARIABLE",
    "CheckOption",
    "config_path",
    "failures_reported",
    "progress_shown",
    "say",
    "say_faultless",
]

CONFIG_VARIABLE = "TESTBED_CONFIG"

CheckOption = Annotated[bool, typer.Option("--check", help="Only find mistakes in the config; start nothing.")]


def say(line: str) -> None:
    """Write a line to stderr."""
    typer.echo(line, err=True)


def say_faultless(path: Path) -> None:
    """Write to stdout that a check of this file found nothing."""
    typer.echo(f"{path.name}: no mistakes found")


def config_path(given: Path | None) -> Path:
    """Return the file named by the command line or the environment."""
    if given is not None:
        return given
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named)
    raise ConfigError(
        [f"astra: --config must name a file, got nothing; give it, or set {CONFIG_VARIABLE} as `testbed` does"]
    )


@contextmanager
def failures_reported() -> Iterator[None]:
    """Turn a failure that has words into lines on stderr and its exit code; any other keeps its traceback."""
    try:
        yield
    except AstraError as error:
        say(str(error))
        raise typer.Exit(error.exit_code) from error


@contextmanager
def progress_shown() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that shows progress: a bar on a terminal, a line at a time elsewhere."""
    if not sys.stderr.isatty():
        yield lambda label, done, total: say(f"{label}: {done}/{total}")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def show(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done)

        yield show
