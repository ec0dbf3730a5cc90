"""`astra`: the command line. Alone prints and exits.

    astra bench      be one rank of a benchmark; rank and peers come from the environment
    astra generate   be one rank that continues texts, in the same way
    astra fit        fit the codebooks that a benchmark needs, once
    astra evaluate   say how accurate strategies are, in this process or as one rank
    astra train      train a model, or fine-tune it and its codebooks for a method
    astra study      train and evaluate all that tables of accuracies need
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
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from astra.config import AstraConfig, BenchConfig
from astra.config_file import Command, load_config
from astra.convert_cli import add_convert
from astra.environment import DEFAULT_OUT, Environment
from astra.errors import AstraError, ConfigError
from astra.model_faults import planning_faults

if TYPE_CHECKING:
    from astra.evaluation.config import EvaluationConfig

__all__ = ["app", "main"]

PLAIN_WIDTH = 160
"""Columns of a table that goes into a file or a pipe."""

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
    """Fit the codebooks that the config's strategies need, and keep them for later runs.

    The config is that of a benchmark, of a generation, or of an evaluation.
    """
    with _failures_reported():
        path = _config_path(config)
        wanted = _load_evaluation(path) or _load(path, "fit")[1]
        if not any(isinstance(strategy, AstraConfig) for strategy in wanted.strategies):
            _say("fit: no strategy needs codebooks")
            return
        from astra.evaluation.run import evaluation_needs
        from astra.fit import bench_needs, fit_missing

        begin_s = time.monotonic()
        needs = bench_needs(wanted) if isinstance(wanted, BenchConfig) else evaluation_needs(wanted)
        with _progress_shown() as show:
            tally = fit_missing(needs, show)
        trained = f", {tally.trained} trained with their weights" if tally.trained else ""
        seconds = f"{time.monotonic() - begin_s:.1f} s"
        _say(f"fit: {tally.fitted} fitted, {tally.cached} found in the cache{trained}, {seconds}")


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


@app.command()
def evaluate(
    config: Annotated[
        Path | None, typer.Argument(help=f"YAML or JSON file that says what to evaluate; default: ${CONFIG_VARIABLE}.")
    ] = None,
    devices: Annotated[str | None, typer.Option("--devices", metavar="N,N…", help="Numbers of devices.")] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="N,N…", help="Seeds of checkpoints or splits.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="DIR", help="Where the data set lies.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Examples to answer at most.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the results; default: $TESTBED_OUT.")
    ] = None,
    check: _CheckOption = False,
) -> None:
    """Answer a labelled set with every strategy; where RANK is set, as one device of several."""
    with _failures_reported():
        from astra.evaluation.config import load_evaluation

        overrides = {
            "devices": _numbers("--devices", devices),
            "seeds": _numbers("--seeds", seeds),
            "data.folder": data,
            "limit": limit,
        }
        path = _config_path(config)
        wanted = load_evaluation(path, {key: value for key, value in overrides.items() if value is not None})
        if check:
            typer.echo(f"{path.name}: no mistakes found")
            return
        _evaluate(wanted, out)


def _evaluate(wanted: "EvaluationConfig", out: Path | None) -> None:
    """Evaluate in this process, or as the rank that the environment names; show and write the results."""
    from astra import reporting
    from astra.evaluation import results, run

    environment = Environment.read(os.environ) if os.environ.get("RANK") else None
    if environment is None:
        with _progress_shown() as show:

            def follow(title: str, done: int, total: int) -> None:
                if done == total or sys.stderr.isatty():
                    show(title, done, total)

            outcomes = run.evaluate_here(wanted, follow)
        folder = out or Path(os.environ.get("TESTBED_OUT") or DEFAULT_OUT)
        rows = results.write_results(folder, wanted, outcomes)
        Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(results.table_of(rows))
        _say(f"{folder / results.FILE_NAME}.csv")
        return
    with closing(reporting.connect(write=_say)) as reporter:
        outcomes = run.evaluate_as_rank(wanted, environment, reporter.progress)
        if environment.rank == 0:
            for row in results.write_results(out or environment.out, wanted, outcomes):
                reporter.row("summary", row)


def _load_evaluation(path: Path) -> "EvaluationConfig | None":
    """Read the config of an evaluation, which names its data; None if it is another, or cannot be read."""
    from astra.evaluation.config import load_evaluation
    from astra.yaml_file import read_yaml

    try:
        is_evaluation = "data" in read_yaml(path)
    except ConfigError:
        return None
    return load_evaluation(path) if is_evaluation else None


def _numbers(option: str, text: str | None) -> list[int] | None:
    """Read whole numbers with commas between them."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError([f"astra: {option} must be whole numbers with commas between them, got {text!r}; as in 2,4"])
    return [int(part) for part in parts]


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="YAML file that says what to train and to compare; see recipes/.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of all checkpoints and tables.")],
    data: Annotated[str | None, typer.Option("--data", metavar="DIR", help="Where the data set lies.")] = None,
    start: Annotated[Path | None, typer.Option("--start", metavar="DIR", help="Trained original model.")] = None,
    torch_device: Annotated[str, typer.Option("--torch-device", help="cpu, or cuda.")] = "cpu",
) -> None:
    """Train and evaluate all that tables of accuracies need, and print them; goes on where it was stopped."""
    with _failures_reported():
        from astra.study import load_study, make_tables, train_all
        from astra.training import display
        from astra.training.loop import Settings

        wanted = load_study(file, data=data)
        with display.progress(_say) as reporter:
            trained = train_all(wanted, out, Settings(torch_device), start, reporter)
        with _progress_shown() as show:
            typer.echo(make_tables(wanted, trained, out, show))


def _load(path: Path | None, command: Command) -> tuple[Path, BenchConfig]:
    """Read the config named by the option or the environment."""
    path = _config_path(path)
    config = load_config(path, command)
    if faults := planning_faults(path.name, config.model):
        raise ConfigError(faults)
    return path, config


def _config_path(given: Path | None) -> Path:
    """Return the file named by the command line or the environment."""
    if given is not None:
        return given
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named)
    raise ConfigError(
        [f"astra: --config must name a file, got nothing; give it, or set {CONFIG_VARIABLE} as `testbed` does"]
    )


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
