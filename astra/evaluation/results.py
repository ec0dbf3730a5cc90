"""From answers to rows: a mean over seeds for each strategy, number of devices and metric, beside `single`.

    Outcome (one strategy, devices, seed) ──rows_of──► rows ──► evaluation.csv, evaluation.json, a table

The reference is the first strategy if it is `single`, with the same seed where it varies with the seed.
"""

import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from astra.evaluation.answering import Answers
from astra.evaluation.config import SEED, EvaluationConfig
from astra.evaluation.cost import bits_per_token, compression_ratio, fpar
from astra.evaluation.paired import Flips, flips_of
from astra.models import ModelShape
from astra.reporting import Cell
from astra.strategy_config import SingleConfig

__all__ = ["ANY_SEED", "FILE_NAME", "Outcome", "rows_of", "table_of", "write_results"]

FILE_NAME = "evaluation"
ANY_SEED = "*"
"""What rows have in a checkpoint's name where the seed was."""
_SHARES = ("accuracy", "f1", "matthews", "pearson", "spearman")
"""Metrics that tables show in hundredths, as they are published."""


@dataclass(frozen=True)
class Outcome:
    """What one strategy on some devices made of the labelled set, with one seed."""

    index: int
    """Which of the config's strategies it is."""
    num_devices: int
    seed: int
    ranges: tuple[range, ...]
    """Content tokens of every rank."""
    shape: ModelShape
    answers: Answers
    coded_share: float = 1.0
    """What entropy-coded codes are expected to take of the bits of packed ones."""


def rows_of(config: EvaluationConfig, outcomes: Sequence[Outcome]) -> list[dict[str, Cell]]:
    """Return a row for each strategy, number of devices and metric."""
    groups: dict[tuple[int, int], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.index, outcome.num_devices), []).append(outcome)
    return [
        _row(config, group, _references(config, group, outcomes), metric)
        for group in (groups[key] for key in sorted(groups))
        for metric in group[0].answers.examples.metrics
    ]


def write_results(folder: Path, config: EvaluationConfig, outcomes: Sequence[Outcome]) -> list[dict[str, Cell]]:
    """Write `evaluation.csv`, and `evaluation.json` with every seed's values and the config; return the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(config, outcomes)
    with (folder / f"{FILE_NAME}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    record = {
        "config": config.model_dump(mode="json"),
        "rows": rows,
        "runs": [_run(config, outcome, outcomes) for outcome in outcomes],
    }
    (folder / f"{FILE_NAME}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return rows


def table_of(rows: Sequence[dict[str, Cell]]) -> Table:
    """Make a table to look at; shares of 1 are shown in hundredths."""
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    columns = (
        "strategy",
        "devices",
        "metric",
        "value",
        "change",
        "bits/token",
        "compression",
        "FPAR",
        "lost",
        "gained",
    )
    for number, name in enumerate((*columns, "p")):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        scale, digits = (100, 2) if row["metric"] in _SHARES else (1, 3)
        value, spread = _number(row["value"], digits, scale), _number(row["spread"], digits, scale)
        table.add_row(
            f"{row['strategy']} {row['settings']}".strip(),
            str(row["devices"]),
            str(row["metric"]),
            f"{value} ± {spread}" if spread else value,
            _number(row["change_vs_single"], digits, scale, sign="+"),
            _number(row["bits_per_token"], 0),
            _number(row["compression_ratio"], 1),
            _number(row["fpar"], 3),
            _number(row["answers_lost"], 0),
            _number(row["answers_gained"], 0),
            _number(row["mcnemar_p"], 3),
        )
    return table


def _row(
    config: EvaluationConfig, group: Sequence[Outcome], references: Sequence[Outcome | None], metric: str
) -> dict[str, Cell]:
    """Sum up all seeds of one strategy on one number of devices."""
    first, strategy = group[0], config.strategies[group[0].index]
    values = [outcome.answers.value(metric) for outcome in group]
    changes = [
        value - reference.answers.value(metric)
        for value, reference in zip(values, references, strict=True)
        if reference is not None
    ]
    bits = _mean([bits_per_token(strategy, outcome.shape, outcome.ranges, outcome.coded_share) for outcome in group])
    flips = [_flips(outcome, reference) for outcome, reference in zip(group, references, strict=True)]
    return {
        "strategy": strategy.name,
        "settings": strategy.settings.replace(SEED, ANY_SEED),
        "devices": first.num_devices,
        "metric": metric,
        "value": statistics.fmean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
        "examples": len(first.answers.examples.inputs),
        "change_vs_single": _mean(changes),
        "bits_per_token": bits,
        "compression_ratio": compression_ratio(first.shape, bits),
        "fpar": _mean([fpar(strategy, outcome.ranges) for outcome in group]),
        **_flip_cells([found for found in flips if found is not None]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of what there is; None where there is nothing."""
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None


def _flip_cells(flips: Sequence[Flips]) -> dict[str, Cell]:
    """Return the mean flips of a seed, and the largest p: seeds share their questions, so they cannot be pooled."""
    return {
        "answers_lost": _mean([found.lost for found in flips]),
        "answers_gained": _mean([found.gained for found in flips]),
        "mcnemar_p": max(found.p for found in flips) if flips else None,
    }


def _flips(outcome: Outcome, reference: Outcome | None) -> Flips | None:
    """Compare right and wrong answers with the reference's; None for scores, texts and the reference itself."""
    answers = outcome.answers
    if reference is None or reference is outcome or not answers.are_classes:
        return None
    assert reference.answers.predictions_N is not None, "the same set, so classes too"
    assert answers.predictions_N is not None, "answers are classes"
    return flips_of(reference.answers.predictions_N, answers.predictions_N, answers.truths)


def _references(
    config: EvaluationConfig, group: Sequence[Outcome], outcomes: Sequence[Outcome]
) -> list[Outcome | None]:
    """Return what each outcome is compared with: that of `single` with its seed, or with the first seed."""
    if not isinstance(config.strategies[0], SingleConfig):
        return [None] * len(group)
    by_seed = {outcome.seed: outcome for outcome in outcomes if outcome.index == 0}
    return [by_seed.get(outcome.seed, by_seed[config.seeds[0]]) for outcome in group]


def _run(config: EvaluationConfig, outcome: Outcome, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return one outcome as plain values."""
    strategy, answers = config.for_seed(outcome.seed).strategies[outcome.index], outcome.answers
    flips = _flips(outcome, _references(config, [outcome], outcomes)[0])
    return {
        "strategy": strategy.model_dump(mode="json"),
        "devices": outcome.num_devices,
        "seed": outcome.seed,
        "tokens": [len(tokens) for tokens in outcome.ranges],
        "fpar": fpar(strategy, outcome.ranges),
        "values": {metric: answers.value(metric) for metric in answers.examples.metrics},
        "flips": None if flips is None else {"lost": flips.lost, "gained": flips.gained, "p": flips.p},
    }


def _number(value: Cell, digits: int, scale: int = 1, sign: str = "") -> str:
    """Write a number, or nothing for None."""
    if value is None:
        return ""
    assert isinstance(value, int | float), "only numbers are scaled"
    return f"{scale * value:{sign}.{digits}f}"
