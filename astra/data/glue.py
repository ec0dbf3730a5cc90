"""GLUE's tasks from their published files: tabs between columns, no quoting, a header or not.

    task   files                                             sentences               label
    sst2   train dev test .tsv                               sentence                0 1
    cola   the same, with or without a header                sentence                0 1
    mrpc   the same, or msr_paraphrase_{train,test}.txt      #1 String, #2 String    0 1
    rte    train dev test .tsv                               sentence1, sentence2    entailment, not_entailment
    qnli   the same                                          question, sentence      entailment, not_entailment
    qqp    the same                                          question1, question2    0 1
    stsb   the same, or sts-{train,dev,test}.csv             sentence1, sentence2    0.0 to 5.0
    mnli   train dev_matched dev_mismatched test_... .tsv    sentence1, sentence2    entailment, neutral, contradiction
    wnli   train dev test .tsv                               sentence1, sentence2    0 1

`validation` is GLUE's dev. The labels of most test files are not published: those are refused. QQP's files are
published with some twenty broken rows in 400,000, which everybody leaves out; elsewhere a broken row is a fault.

Source: Wang et al., arXiv 1804.07461. Label numbers are those of the `datasets` library.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from astra.data.folders import absent, read_lines, unlabelled
from astra.data.labelled import Split
from astra.data.sentences import Sentences
from astra.data_config import GlueName
from astra.errors import ConfigError

__all__ = ["GLUE", "GlueTask", "read_glue"]

LOWEST_SCORE, HIGHEST_SCORE = 0.0, 5.0
_MOST_BROKEN = 0.001
"""Share of broken rows that QQP may have: 10 times what its published files have."""
_SHOWN_FAULTS = 10
_ENTAILED = ("entailment", "not_entailment")


@dataclass(frozen=True)
class GlueTask:
    """How a task's files look, and what it is measured by."""

    sentences: tuple[str, ...]
    label: str
    classes: tuple[str, ...]
    """Names of the classes in files, in the order of their numbers; none for a score."""
    metrics: tuple[str, ...] = ("accuracy",)
    headless: tuple[str, ...] = ()
    """Columns of a published file without a header."""


GLUE: dict[GlueName, GlueTask] = {
    "sst2": GlueTask(("sentence",), "label", ("0", "1")),
    "cola": GlueTask(("sentence",), "label", ("0", "1"), ("matthews",), ("source", "label", "orig", "sentence")),
    "mrpc": GlueTask(("#1 String", "#2 String"), "Quality", ("0", "1"), ("accuracy", "f1")),
    "rte": GlueTask(("sentence1", "sentence2"), "label", _ENTAILED),
    "qnli": GlueTask(("question", "sentence"), "label", _ENTAILED),
    "qqp": GlueTask(("question1", "question2"), "is_duplicate", ("0", "1"), ("accuracy", "f1")),
    "stsb": GlueTask(
        ("sentence1", "sentence2"),
        "score",
        (),
        ("pearson", "spearman"),
        ("genre", "filename", "year", "old_index", "score", "sentence1", "sentence2"),
    ),
    "mnli": GlueTask(("sentence1", "sentence2"), "gold_label", ("entailment", "neutral", "contradiction")),
    "wnli": GlueTask(("sentence1", "sentence2"), "label", ("0", "1")),
}


def read_glue(folder: Path, name: GlueName, subset: str | None, split: Split, limit: int | None) -> Sentences:
    """Read the first `limit` rows of a task's split.

    Raises:
        ConfigError: The file is missing or has no labels; or rows are wrong, and names them.
    """
    path, own_split = _find(folder, name, subset, split)
    columns, lines = _table(path, GLUE[name])
    rows, faults = _read_rows(path, name, columns, lines)
    if not faults and name == "mrpc" and not own_split:
        rows = _mrpc_split(folder, columns, rows, split)
    if faults:
        hidden = len(faults) - _SHOWN_FAULTS
        more = [f"{path}: rows must be right, got {hidden} more that are not; correct them too"] if hidden > 0 else []
        raise ConfigError(faults[:_SHOWN_FAULTS] + more)
    return _sentences(GLUE[name], columns, rows[:limit])


def _find(folder: Path, name: GlueName, subset: str | None, split: Split) -> tuple[Path, bool]:
    """Return the file that holds `split`, and whether it holds nothing else."""
    stem = {"train": "train", "validation": "dev", "test": "test"}[split]
    if name == "mnli" and split != "train":
        stem += f"_{subset or 'matched'}"
    names = [f"{stem}.tsv"]
    if name == "stsb":
        names.append(f"sts-{stem}.csv")
    for each in names:
        if (folder / each).is_file():
            return folder / each, True
    raw = folder / f"msr_paraphrase_{'test' if split == 'test' else 'train'}.txt"
    if name == "mrpc" and raw.is_file():
        return raw, split == "test"
    raise ConfigError([absent(folder / names[0], f"copy GLUE's files of {name} there")])


def _table(path: Path, task: GlueTask) -> tuple[dict[str, int], Sequence[tuple[int, str]]]:
    """Return where each column is, and the numbered lines below the header."""
    lines = list(enumerate(read_lines(path), start=1))
    header = [cell.strip() for cell in lines[0][1].split("\t")] if lines else []
    if set(task.sentences) <= set(header):
        names, lines = header, lines[1:]
    elif task.headless and len(header) >= len(task.headless):
        names = list(task.headless)
    else:
        wanted = ", ".join((*task.sentences, task.label))
        raise ConfigError([f"{path}: row 1 must name the columns {wanted}, got {header!r}; copy the published file"])
    if task.label not in names:
        raise unlabelled(path, path.parent.name)
    return {name: number for number, name in enumerate(names)}, lines


def _read_rows(
    path: Path, name: GlueName, columns: dict[str, int], lines: Sequence[tuple[int, str]]
) -> tuple[list[list[str]], list[str]]:
    """Return the cells of every row, and what is wrong with rows."""
    task = GLUE[name]
    rows, broken, faults = [], [], []
    for number, line in lines:
        cells = line.split("\t")
        more_allowed = task.headless and len(cells) > len(columns)  # the scores' published files name their sources
        if len(cells) != len(columns) and not more_allowed:
            advice = "cells have no tabs or line breaks; copy the published file"
            broken.append(f"{path}: row {number} must have {len(columns)} columns, got {len(cells)}; {advice}")
            continue
        if fault := _label_fault(task, cells[columns[task.label]]):
            faults.append(f"{path}: {task.label} of row {number} must be {fault}; correct the row")
        rows.append(cells)
    if name != "qqp" or len(broken) > _MOST_BROKEN * len(lines):
        faults += broken
    if not rows and not faults:
        faults = [f"{path}: file must have rows, got none; copy it again"]
    return rows, faults


def _label_fault(task: GlueTask, label: str) -> str | None:
    if task.classes:
        return None if label in task.classes else f"one of {', '.join(task.classes)}, got {label!r}"
    try:
        fits = LOWEST_SCORE <= float(label) <= HIGHEST_SCORE
    except ValueError:
        fits = False
    return None if fits else f"a number from {LOWEST_SCORE} to {HIGHEST_SCORE}, got {label!r}"


def _mrpc_split(folder: Path, columns: dict[str, int], rows: list[list[str]], split: Split) -> list[list[str]]:
    """Part the raw training file as GLUE did, by `dev_ids.tsv`; without that, its last 10 % are validation."""
    listed = folder / "dev_ids.tsv"
    if not listed.is_file():
        middle = len(rows) - round(0.1 * len(rows))
        return rows[:middle] if split == "train" else rows[middle:]
    validation = {tuple(line.split("\t")[:2]) for line in read_lines(listed)}
    first, second = columns["#1 ID"], columns["#2 ID"]
    return [row for row in rows if ((row[first], row[second]) in validation) == (split == "validation")]


def _sentences(task: GlueTask, columns: dict[str, int], rows: Sequence[Sequence[str]]) -> Sentences:
    given = [row[columns[task.label]] for row in rows]
    labels = (
        np.array([task.classes.index(label) for label in given], np.int64)
        if task.classes
        else np.array([float(label) for label in given], np.float32)
    )
    return Sentences(tuple(tuple(row[columns[name]].strip() for row in rows) for name in task.sentences), labels)
