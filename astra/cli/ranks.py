"""`astra bench`, `astra generate` and `astra fit`: what a scenario's workload runs."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from astra.cli.terminal import (
    CONFIG_VARIABLE,
    CheckOption,
    config_path,
    failures_reported,
    progress_shown,
    say,
    say_faultless,
)
from astra.config import AstraConfig, BenchConfig
from astra.config_file import Command, load_config
from astra.environment import Environment
from astra.errors import ConfigError
from astra.model_faults import planning_faults
from astra.strategy_config import AnyStrategy

if TYPE_CHECKING:
    from astra.evaluation.config import EvaluationConfig
    from astra.reporting import Reporter

__all__ = ["bench", "fit", "generate"]

_ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help=f"JSON file that says what to do; default: ${CONFIG_VARIABLE}."),
]


def bench(config: _ConfigOption = None, check: CheckOption = False) -> None:
    """Be one rank of a benchmark; RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say which and where."""

    def serve(wanted: BenchConfig, environment: Environment, reporter: "Reporter") -> None:
        from astra.worker import run_rank

        run_rank(wanted, environment, reporter)

    _be_rank(config, "bench", check, serve)


def generate(config: _ConfigOption = None, check: CheckOption = False) -> None:
    """Be one rank that continues texts; RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say which and where."""

    def write_on(wanted: BenchConfig, environment: Environment, reporter: "Reporter") -> None:
        from astra.generate import run_generation

        watch = None if os.environ.get("TESTBED_SOCKET") else _stream
        run_generation(wanted, environment, reporter, watch=watch)
        if watch is not None and environment.rank == 0:
            typer.echo("")

    _be_rank(config, "generate", check, write_on)


def fit(config: _ConfigOption = None) -> None:
    """Fit the codebooks that the config's strategies need, and keep them for later runs.

    The config is that of a benchmark, of a generation, or of an evaluation.
    """
    with failures_reported():
        path = config_path(config)
        wanted = _load_evaluation(path) or _load(path, "fit")[1]
        if not any(isinstance(strategy, AstraConfig) for strategy in _all_of(wanted)):
            say("fit: no strategy needs codebooks")
            return
        from astra.evaluation.run import evaluation_needs
        from astra.fit import bench_needs, fit_missing

        begin_s = time.monotonic()
        needs = bench_needs(wanted) if isinstance(wanted, BenchConfig) else evaluation_needs(wanted)
        with progress_shown() as show:
            tally = fit_missing(needs, show)
        trained = f", {tally.trained} trained with their weights" if tally.trained else ""
        seconds = f"{time.monotonic() - begin_s:.1f} s"
        say(f"fit: {tally.fitted} fitted, {tally.cached} found in the cache{trained}, {seconds}")


def _be_rank(
    config: Path | None,
    command: Command,
    check: bool,
    work: Callable[[BenchConfig, Environment, "Reporter"], None],
) -> None:
    """Check the config, and unless that was all, do the work of the rank that the environment names."""
    with failures_reported():
        path, wanted = _load(config, command)
        if check:
            say_faultless(path)
            return
        environment = Environment.read(os.environ)
        from astra import reporting

        with closing(reporting.connect(write=say)) as reporter:
            work(wanted, environment, reporter)


def _all_of(wanted: "BenchConfig | EvaluationConfig") -> Sequence[AnyStrategy]:
    """Return all strategies that may come to run."""
    return wanted.candidates if isinstance(wanted, BenchConfig) else wanted.strategies


def _load_evaluation(path: Path) -> "EvaluationConfig | None":
    """Read the config of an evaluation, which names its data; None if it is another, or cannot be read."""
    from astra.evaluation.config import load_evaluation
    from astra.yaml_file import read_yaml

    try:
        is_evaluation = "data" in read_yaml(path)
    except ConfigError:
        return None
    return load_evaluation(path) if is_evaluation else None


def _load(path: Path | None, command: Command) -> tuple[Path, BenchConfig]:
    """Read the config named by the option or the environment."""
    path = config_path(path)
    config = load_config(path, command)
    if faults := planning_faults(path.name, config.model):
        raise ConfigError(faults)
    return path, config


def _stream(piece: str) -> None:
    typer.echo(piece, nl=False)
