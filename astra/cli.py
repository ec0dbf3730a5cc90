"""`astra`: the command line. Alone prints and exits.

    astra bench      be one rank of a benchmark; rank and peers come from the environment
    astra generate   be one rank that continues texts, in the same way
    astra fit        fit the codebooks that a benchmark needs, once
    astra train      train a model, or fine-tune it and its codebooks for a method
    astra convert    turn models that were trained elsewhere into checkpoint folders

Exit codes: 0 success, 1 the run failed, 2 bad input. torch and transformers take seconds to import, so the commands
import what needs them themselves, and `--check` goes without.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from astra.config import AstraConfig, BenchConfig
from astra.config_file import Command, load_config
from astra.convert_cli import add_convert
from astra.environment import Environment
from astra.errors import AstraError, ConfigError
from astra.model_faults import planning_faults

__all__ = ["app", "main"]

CONFIG_VARIABLE = "TESTBED_CONFIG"

app = typer.Typer(
    help="Distributed Transformer inference over slow links.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help=f"JSON file that says what to do; default: ${CONFIG_VARIABLE}."),
]

_CheckOption = Annotated[bool, typer.Option("--check", help="Only find mistakes in the config; start nothing.")]


def main() -> None:
    """Run the command line."""
    app(prog_name="astra")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"astra {version('astra-testbed')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


@app.command()
def bench(config: _ConfigOption = None, check: _CheckOption = False) -> None:
    """Be one rank of a benchmark; RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say which and where."""
    with _failures_reported():
        path, wanted = _load(config, "bench")
        if check:
            typer.echo(f"{path.name}: no mistakes found")
            return
        environment = Environment.read(os.environ)
        from astra import reporting
        from astra.worker import run_rank

        with closing(reporting.connect(write=_say)) as reporter:
            run_rank(wanted, environment, reporter)


@app.command()
def generate(config: _ConfigOption = None, check: _CheckOption = False) -> None:
    """Be one rank that continues texts; RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say which and where."""
    with _failures_reported():
        path, wanted = _load(config, "generate")
        if check:
            typer.echo(f"{path.name}: no mistakes found")
            return
        environment = Environment.read(os.environ)
        from astra import reporting
        from astra.generate import run_generation

        watch = None if os.environ.get("TESTBED_SOCKET") else _stream
        with closing(reporting.connect(write=_say)) as reporter:
            run_generation(wanted, environment, reporter, watch=watch)
        if watch is not None and environment.rank == 0:
            typer.echo("")


@app.command()
def fit(config: _ConfigOption = None) -> None:
    """Fit the codebooks that the config's strategies need, and keep them for later runs."""
    with _failures_reported():
        _, wanted = _load(config, "fit")
        needed = [strategy for strategy in wanted.strategies if isinstance(strategy, AstraConfig)]
        if not needed:
            _say("fit: no strategy needs codebooks")
            return
        from astra.fit import ensure_fitted

        begin_s = time.monotonic()
        fitted: set[str] = set()
        with _progress_shown() as show:

            def follow(label: str, done: int, total: int) -> None:
                fitted.add(label)
                show(label, done, total)

            ensure_fitted(wanted, follow)
        cached = len(needed) - len(fitted)
        _say(f"fit: {len(fitted)} fitted, {cached} found in the cache, {time.monotonic() - begin_s:.1f} s")


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file that says what to train; see recipes/.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the checkpoint and the log.")],
    data: Annotated[str | None, typer.Option("--data", metavar="DIR", help="Where the data set lies.")] = None,
    start: Annotated[str | None, typer.Option("--start", metavar="DIR", help="Checkpoint to begin with.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a killed training stopped.")] = False,
    torch_device: Annotated[str, typer.Option("--torch-device", help="cpu, or cuda.")] = "cpu",
    state_minutes: Annotated[
        float, typer.Option("--state-minutes", min=0.0, help="Minutes between two states to resume from.")
    ] = 5.0,
) -> None:
    """Train a model; with a method, train its control too and report both."""
    with _failures_reported():
        from astra.training import display, loop
        from astra.training.recipe import load_recipe

        wanted = load_recipe(recipe, data=data, start=start)
        settings = loop.Settings(torch_device, resume, 60 * state_minutes)
        with display.progress(_say) as reporter:
            summaries = loop.finetune(wanted, out, settings, reporter)
        for name, summary in summaries.items():
            _say(f"{name}: {summary.metric} {summary.value:.4g} on the validation set after {summary.kept_step} steps")


def _load(path: Path | None, command: Command) -> tuple[Path, BenchConfig]:
    """Read the config named by the option or the environment."""
    if path is None:
        named = os.environ.get(CONFIG_VARIABLE)
        if not named:
            raise ConfigError(
                [f"astra: --config must name a file, got nothing; give it, or set {CONFIG_VARIABLE} as `testbed` does"]
            )
        path = Path(named)
    config = load_config(path, command)
    if faults := planning_faults(path.name, config.model):
        raise ConfigError(faults)
    return path, config


@contextmanager
def _failures_reported() -> Iterator[None]:
    """Turn a failure that has words into lines on stderr and its exit code; any other keeps its traceback."""
    try:
        yield
    except AstraError as error:
        _say(str(error))
        raise typer.Exit(error.exit_code) from error


add_convert(app, _failures_reported)


@contextmanager
def _progress_shown() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that shows progress: a bar on a terminal, a line at a time elsewhere."""
    if not sys.stderr.isatty():
        yield lambda label, done, total: _say(f"{label}: {done}/{total}")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def show(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done)

        yield show


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _stream(piece: str) -> None:
    typer.echo(piece, nl=False)
