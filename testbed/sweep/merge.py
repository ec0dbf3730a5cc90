"""Put the folders of a sweep's shards together, such that one of the whole sweep comes out."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from testbed.errors import InputError
from testbed.sweep.folder import Description, SweepFolder, finished_runs

__all__ = ["merge"]


def merge(folders: Sequence[Path], out: Path) -> tuple[Description, int]:
    """Copy the finished runs of several folders of one sweep into the new folder `out`.

    Returns what the result describes, and how many of its runs are missing: of the cells in no folder, or not finished.
    Raises InputError with every fault: folders of other sweeps, or one run in two folders.
    """
    parts = [Description.read(folder) for folder in folders]
    faults = [*_unlike(folders, parts), *_twice(folders, parts)]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        faults.append(f"--out: must be a new or empty folder, got '{out}'; name another or remove it")
    if faults:
        raise InputError(faults)
    cells = {cell.id: cell for part in parts for cell in part.cells}
    whole = replace(parts[0], cells=tuple(cells.values()), repeat=max(part.repeat for part in parts), shard=None)
    out.mkdir(parents=True, exist_ok=True)
    num_runs = 0
    for folder, part in zip(folders, parts, strict=True):
        for cell, number, run in finished_runs(folder, part):
            shutil.copytree(run, out / cells[cell.id].folder / f"run-{number}")
            num_runs += 1
    whole.write(out)
    with SweepFolder.open(out, whole):
        pass  # that writes the tables
    return whole, whole.num_cells * whole.repeat - num_runs


def _unlike(folders: Sequence[Path], parts: Sequence[Description]) -> Iterator[str]:
    first = parts[0]
    for folder, part in zip(folders, parts, strict=True):
        for name in ("name", "axes", "num_cells"):
            theirs, ours = getattr(part, name), getattr(first, name)
            if theirs != ours:
                rule = f"as in {folders[0]}, {ours!r}"
                yield f"{folder}: {name} must be {rule}, got {theirs!r}; merge shards of one sweep"


def _twice(folders: Sequence[Path], parts: Sequence[Description]) -> Iterator[str]:
    seen: dict[tuple[str, int], Path] = {}
    for folder, part in zip(folders, parts, strict=True):
        for cell, number, run in finished_runs(folder, part):
            if (cell.id, number) in seen:
                other = seen[cell.id, number]
                yield f"{run}: must be in one folder only, got it in {other} too; leave one of them out"
            seen[cell.id, number] = folder
