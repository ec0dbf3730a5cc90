"""How a training shows itself: a bar with loss and metric on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from astra.training.loop import Report
from astra.training.objectives import Judgement

__all__ = ["progress"]

LINE_EVERY_S = 15.0


@contextmanager
def progress(say: Callable[[str], None]) -> Iterator[Callable[[str], Report]]:
    """Give a function that makes the reporter of a named training; lines go to `say`."""
    if not sys.stderr.isatty():
        yield lambda name: _lines(name, say)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("{task.fields[metric]}"), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield lambda name: _bar(name, bars)


def _bar(name: str, bars: Progress) -> Report:
    task = bars.add_task(name, total=None, loss=float("nan"), metric="")

    def report(done: int, total: int, loss: float, look: Judgement | None) -> None:
        bars.update(task, completed=done, total=total, loss=loss, metric=_shown(look))

    return report


def _lines(name: str, say: Callable[[str], None]) -> Report:
    last_s = -LINE_EVERY_S

    def report(done: int, total: int, loss: float, look: Judgement | None) -> None:
        nonlocal last_s
        if done == total or time.monotonic() - last_s >= LINE_EVERY_S:
            last_s = time.monotonic()
            say(f"{name}: {done}/{total} loss {loss:.4f} {_shown(look)}".rstrip())

    return report


def _shown(look: Judgement | None) -> str:
    return "" if look is None else f"{look.metric} {look.value:.4g}"
