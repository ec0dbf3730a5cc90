"""`testbed sweep SWEEP.yaml` and `testbed sweep merge`. Like `cli`, of which it is a part, it prints and exits."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from testbed.display import Display, fitting_table, format_value, table_of
from testbed.errors import InputError
from testbed.options import Options
from testbed.printing import console, say, say_results
from testbed.record import Record
from testbed.results import MEASURES, OWN, SETTING, Row
from testbed.runtimes import RUNTIMES, userns
from testbed.sweep.cells import Cell, Sweep, load
from testbed.sweep.estimate import duration_text
from testbed.sweep.folder import Description, SweepFolder
from testbed.sweep.merge import merge as merge_folders
from testbed.sweep.order import num_programs, ordered, plan
from testbed.sweep.order import shard as shard_of
from testbed.sweep.paths import last_words
from testbed.sweep.running import Tally, check_cells, estimate_of, run_sweep
from testbed.sweep.schema import json_schema
from testbed.sweep.session import Session
from testbed.workload import invoking_user

__all__ = ["app"]


class _RunByDefault(TyperGroup):
    """Takes what is no command for the arguments of `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in front."""
        first = next((word for word in args if not word.startswith("-")), None)
        if args and first not in self.commands and "--help" not in args:
            args = ["run", *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(
    help="Run a scenario at every point of a matrix: testbed sweep SWEEP.yaml [OPTIONS], see testbed sweep run --help.",
    cls=_RunByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def run(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="the sweep")],
    out: Annotated[Path | None, typer.Option("--out", help="folder of the sweep; default results/<name>")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="run each cell so often; mean and spread are in spread.csv")] = 1,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="run part I of N only, for N machines")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the cells and what they will take")] = False,
    runtime: Annotated[str, typer.Option("--runtime", help="where devices live: netns or docker")] = "netns",
    uncapped: Annotated[bool, typer.Option("--uncapped", help="run without limits where none can be set")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="plain lines instead of a live display")] = False,
    calibrate: Annotated[bool, typer.Option(help="measure the links first")] = True,
    go_on: Annotated[bool, typer.Option("--go-on", help="run on untrue links, or on more CPUs than there are")] = False,
    timeout_s: Annotated[float | None, typer.Option(min=0.1, help="give up on a run after so many seconds")] = None,
) -> None:
    """Run every cell that has not been run yet, and keep each as it ends. Killed, it goes on where it was."""
    able = [name for name in RUNTIMES if name != "compose"]  # whose devices somebody else makes, once
    if runtime not in able:
        raise InputError([f"--runtime: must be one of {', '.join(able)} for a sweep, got {runtime!r}"])
    loaded = load(sweep)
    part, count = _shard_numbers(shard)
    cells = shard_of(ordered(loaded.cells), part, count)
    out = out or Path("results") / (loaded.name + (f"-{part}of{count}" if count > 1 else ""))
    described = Description.of(loaded, cells, repeat=repeat, shard=shard)
    options = Options(runtime, None, uncapped, calibrate, go_on, timeout_s)
    check_cells(cells, options)
    if dry_run:
        _show_plan(loaded, cells, SweepFolder(out, described), repeat)
        return
    if runtime == "netns" and userns.needed():
        userns.enter()
    with SweepFolder.open(out, described) as folder:
        try:
            with Display(console, live=False if plain else None) as display:
                stage = Session(options, Record(out), display)
                tally = run_sweep(loaded, cells, repeat, folder, stage=stage, display=display)
        finally:
            identity = invoking_user()
            Record(out).hand_over(identity.uid, identity.gid)
    _show_tally(loaded, folder, tally)
    _write_report(out)
    raise typer.Exit(0 if tally.ok else 1)


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="SWEEP_DIR...", help="the folders of the shards")],
    out: Annotated[Path, typer.Option("--out", help="folder for all of it")],
) -> None:
    """Put the results of shards together in a folder of the whole sweep."""
    whole, missing = merge_folders(folders, out)
    console.print(f"{len(whole.cells)} of {whole.num_cells} cells, {missing} runs missing", highlight=False)
    say_results(out)
    _write_report(out)
    raise typer.Exit(1 if missing else 0)


@app.command()
def schema() -> None:
    """Write the JSON Schema of sweep files, for editors; that of scenarios: testbed validate --schema."""
    sys.stdout.write(json.dumps(json_schema(), indent=2) + "\n")


def _shard_numbers(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    numbers = re.fullmatch(r"([1-9][0-9]{0,3})/([1-9][0-9]{0,3})", text)
    if not numbers or int(numbers[1]) > int(numbers[2]):
        raise InputError([f"--shard: must be I/N with I from 1 to N, got {text!r}; such as 1/4 on the first of four"])
    return int(numbers[1]), int(numbers[2])


def _show_plan(sweep: Sweep, cells: Sequence[Cell], folder: SweepFolder, repeat: int) -> None:
    """Print the cells in the order in which they will be run, and how long that may take."""
    estimate = estimate_of(sweep, folder)
    batches = plan(cells, repeat, folder.durations_s.keys())
    left = [run for batch in batches for run in batch.runs]
    rows: list[Row] = []
    for cell in cells:
        done = sum((cell.id, number) in folder.durations_s for number in range(1, repeat + 1))
        expected_s = estimate.of(cell.values)
        known: Row = {"cell": cell.id, "setting": cell.label, "finished": f"{done} of {repeat}"}
        rows.append({**known, "a run takes": duration_text(expected_s)})
    console.print(table_of(rows))
    console.print(
        f"{len(cells)} of {len(sweep.cells)} cells, {len(left)} runs left; devices are made {len(batches)} times, "
        f"programs started {num_programs(batches)} times at least",
        highlight=False,
        soft_wrap=True,
    )
    total = duration_text(estimate.total(run.cell.values for run in left))
    console.print(f"about {total}, without making devices and calibrating links", highlight=False)


def _show_tally(sweep: Sweep, folder: SweepFolder, tally: Tally) -> None:
    """Print what the sweep file wants shown, and where all of it is."""
    rows = [row for row in folder.spread() if row["metric"] in sweep.show]
    if rows:
        console.print(fitting_table(_side_by_side(rows, sweep.axes), console, title=sweep.name))
    for line in tally.unmet:
        say(f"[red]not met[/red]  {escape(line)}")
    for line in tally.failed:
        say(f"[red]failed[/red]   {escape(line)}")
    if tally.failed:
        console.print("run the same command again to try what failed once more")
    say_results(folder.path)


def _write_report(folder: Path) -> None:
    """Write the report of all that has been measured, or say why not.

    In a process of its own, since the sweep is done, and well, whatever becomes of that.
    """
    done = subprocess.run([sys.executable, "-m", "testbed", "report", folder], capture_output=True, text=True)
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    said = done.stdout.strip() if done.returncode == 0 else f"no report: {last}"
    say(escape(said))


def _side_by_side(rows: Sequence[Row], axes: Sequence[str]) -> list[Row]:
    """Put the metrics of each row of a summary into one row: mean, and standard deviation where there is one."""
    places: dict[tuple[object, ...], Row] = {}
    short = last_words(axes)
    for row in rows:
        names = [name for name in row if name in axes or name not in (*MEASURES, *OWN, *SETTING)]
        key = (row["cell"], *(row[name] for name in names))
        place = places.setdefault(key, {short.get(name, name): row[name] for name in names})
        metric = str(row["metric"])
        mean, deviation = format_value(metric, row["mean"]), row["std"]
        place[metric] = mean if deviation is None else f"{mean} ± {format_value(metric, deviation)}"
    return list(places.values())
