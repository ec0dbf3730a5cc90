"""`astra`: the command line. Alone prints and exits.

    astra bench      be one rank of a benchmark; rank and peers come from the environment
    astra generate   be one rank that continues texts, in the same way
    astra fit        fit the codebooks that a benchmark needs, once
    astra evaluate   say how accurate strategies are, in this process or as one rank
    astra train      train a model, or fine-tune it and its codebooks for a method
    astra study      train and evaluate all that tables of accuracies need
    astra keys       make the key files of a run by hand
    astra plan       predict what strategies would take on the devices and links of a scenario, and run nothing
    astra probe      measure how fast this machine computes
    astra convert    turn models that were trained elsewhere into checkpoint folders

Exit codes: 0 success, 1 the run failed, 2 bad input. torch and transformers take seconds to import, so the commands
import what needs them themselves, and `--check` goes without.
"""

from importlib.metadata import version
from typing import Annotated

import typer

from astra.cli import accuracy, convert, keys, planning, ranks

__all__ = ["app", "main"]

app = typer.Typer(
    help="Distributed Transformer inference over slow links.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _command in (
    *(ranks.bench, ranks.generate, ranks.fit),
    *(accuracy.evaluate, accuracy.train, accuracy.study),
    *(planning.plan, planning.probe, keys.keys),
):
    app.command()(_command)
app.add_typer(convert.commands, name="convert")


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
