"""`astra train`, `astra evaluate` and `astra study`: what a method costs in accuracy, and how that cost is lowered."""

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from astra.cli.terminal import (
    CONFIG_VARIABLE,
    CheckOption,
    config_path,
    failures_reported,
    progress_shown,
    say,
    say_faultless,
)
from astra.environment import DEFAULT_OUT, Environment
from astra.errors import ConfigError

if TYPE_CHECKING:
    from astra.evaluation.config import EvaluationConfig

__all__ = ["evaluate", "study", "train"]

PLAIN_WIDTH = 160
"""Columns of a table that goes into a file or a pipe."""

_TorchDevice = Annotated[str, typer.Option("--torch-device", help="cpu, or cuda.")]
_Precision = Annotated[
    Literal["fp32", "bf16"] | None,
    typer.Option("--precision", help="bf16 halves the time on GPUs and on CPUs that have it. [default: bf16 on cuda]"),
]


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file that says what to train; see recipes/.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the checkpoint and the log.")],
    data: Annotated[str | None, typer.Option("--data", metavar="DIR", help="Where the data set lies.")] = None,
    start: Annotated[str | None, typer.Option("--start", metavar="DIR", help="Checkpoint to begin with.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a killed training stopped.")] = False,
    torch_device: _TorchDevice = "cpu",
    precision: _Precision = None,
    state_minutes: Annotated[
        float, typer.Option("--state-minutes", min=0.0, help="Minutes between two states to resume from.")
    ] = 5.0,
) -> None:
    """Train a model; with a method, train its control too and report both."""
    with failures_reported():
        from astra.training import display
        from astra.training.loop import Settings
        from astra.training.recipe import load_recipe
        from astra.training.start import finetune

        wanted = load_recipe(recipe, data=data, start=start)
        settings = Settings(torch_device, resume, 60 * state_minutes, precision=precision)
        with display.progress(say) as reporter:
            summaries = finetune(wanted, out, settings, reporter)
        for name, summary in summaries.items():
            say(f"{name}: {summary.metric} {summary.value:.4g} on the validation set after {summary.kept_step} steps")


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
    check: CheckOption = False,
) -> None:
    """Answer a labelled set with every strategy; where RANK is set, as one device of several."""
    with failures_reported():
        from astra.evaluation.config import load_evaluation

        overrides = {
            "devices": _numbers("--devices", devices),
            "seeds": _numbers("--seeds", seeds),
            "data.folder": data,
            "limit": limit,
        }
        path = config_path(config)
        wanted = load_evaluation(path, {key: value for key, value in overrides.items() if value is not None})
        if check:
            say_faultless(path)
            return
        _evaluate(wanted, out)


def _evaluate(wanted: "EvaluationConfig", out: Path | None) -> None:
    """Evaluate in this process, or as the rank that the environment names; show and write the results."""
    from astra import reporting
    from astra.evaluation import results, run

    environment = Environment.read(os.environ) if os.environ.get("RANK") else None
    if environment is None:
        with progress_shown() as show:

            def follow(title: str, done: int, total: int) -> None:
                if done == total or sys.stderr.isatty():
                    show(title, done, total)

            outcomes = run.evaluate_here(wanted, follow)
        folder = out or Path(os.environ.get("TESTBED_OUT") or DEFAULT_OUT)
        rows = results.write_results(folder, wanted, outcomes)
        Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH).print(results.table_of(rows))
        say(f"{folder / results.FILE_NAME}.csv")
        return
    with closing(reporting.connect(write=say)) as reporter:
        outcomes = run.evaluate_as_rank(wanted, environment, reporter.progress)
        if environment.rank == 0:
            for row in results.write_results(out or environment.out, wanted, outcomes):
                reporter.row("summary", row)


def study(
    file: Annotated[Path, typer.Argument(help="YAML file that says what to train and to compare; see recipes/.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of all checkpoints and tables.")],
    data: Annotated[str | None, typer.Option("--data", metavar="DIR", help="Where the data set lies.")] = None,
    start: Annotated[Path | None, typer.Option("--start", metavar="DIR", help="Trained original model.")] = None,
    torch_device: _TorchDevice = "cpu",
    precision: _Precision = None,
) -> None:
    """Train and evaluate all that tables of accuracies need, and print them; goes on where it was stopped."""
    with failures_reported():
        from astra.study import load_study, make_tables, train_all
        from astra.training import display
        from astra.training.loop import Settings

        wanted = load_study(file, data=data, start=None if start is None else str(start))
        with display.progress(say) as reporter:
            trained = train_all(wanted, out, Settings(torch_device, precision=precision), start, reporter)
        with progress_shown() as show:
            typer.echo(make_tables(wanted, trained, out, show))


def _numbers(option: str, text: str | None) -> list[int] | None:
    """Read whole numbers with commas between them."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError([f"astra: {option} must be whole numbers with commas between them, got {text!r}; as in 2,4"])
    return [int(part) for part in parts]
