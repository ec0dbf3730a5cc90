"""`astra study`: train what tables of accuracies need, evaluate it, and write the tables.

    study.yaml ──► original ──► for every seed: control, and each method ──► checkpoints in OUT/<name>-<seed>
                                                   │                            │
                                   ablations: the test metric       evaluations: real strategies
                                                   └───────────► tables.md ◄────┘

    original: {model: …, data: …, train: …}        a recipe; `--start DIR` takes a trained checkpoint instead
    finetune: {steps: …}                           the course that control and methods share
    seeds: [0, 1, 2]
    split: test                                    or validation, where labels of the test split are not published
    methods: {g1: {name: astra, num_groups: 1}, …}
    tables:
      - {title: …, ablation: [g1, g1-quiet]}       test metric of these trainings, emulated, beside that of the control
      - {title: …, evaluation: {strategies: […], devices: […]}}      as for `astra evaluate`; `{g1}` stands for the
                                                                     checkpoint of each seed, `{g1:0}` for that of one

What is finished is not done again, so a study that was killed goes on where it stopped.
"""

import io
import json
import statistics
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from rich import box
from rich.console import Console
from rich.table import Table

from astra import faults
from astra.errors import ConfigError
from astra.evaluation.config import SEED, EvaluationConfig, parse_evaluation
from astra.evaluation.metrics import PERPLEXITY
from astra.evaluation.results import ANY_SEED, FILE_NAME, table_of, write_results
from astra.evaluation.run import Progress, evaluate_here
from astra.reporting import Cell
from astra.section import Section
from astra.strategy_faults import group_faults, located
from astra.training.loop import Report, Settings
from astra.training.recipe import AstraMethod, Method, Recipe, TrainConfig, recipe_faults, replace_places
from astra.training.start import ensure_trained
from astra.training.summary import Summary
from astra.yaml_file import read_yaml

__all__ = ["Study", "StudyTable", "Trained", "load_study", "make_tables", "train_all"]

ORIGINAL, CONTROL = "original", "control"
TABLES_FILE = "tables.md"
TABLE_WIDTH = 400
"""Wide enough that no cell is broken."""


class StudyTable(Section):
    """One table: trainings side by side, or strategies that run on them."""

    title: str = Field(min_length=1)
    ablation: tuple[str, ...] = ()
    """Names of methods."""
    evaluation: dict[str, Any] = Field(default_factory=dict)
    """A config for `astra evaluate` without model, data and seeds."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if bool(self.ablation) == bool(self.evaluation):
            raise faults.rule_error("a table with either ablation or evaluation", "make two tables of it")
        return self


class Study(Section):
    """Everything that the tables are made from."""

    original: Recipe
    finetune: TrainConfig
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)
    methods: Mapping[str, Method]
    split: Literal["validation", "test"] = "test"
    """What tables are about; validation where labels of the test split are not published, as GLUE's."""
    tables: tuple[StudyTable, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        known = list(self.methods)
        if reserved := {ORIGINAL, CONTROL} & set(known):
            raise faults.rule_error(f"a study with no method called {min(reserved)}", "every study has that already")
        for name in (name for table in self.tables for name in table.ablation):
            if name not in self.methods:
                raise faults.rule_error("a study whose ablations are methods", faults.suggestion(name, known))
        return self


def load_study(path: Path, *, data: str | None = None, start: str | None = None) -> Study:
    """Read and check a study; `data` and `start` replace data.folder and model.checkpoint of its original.

    Raises:
        ConfigError: With every fault found.
    """
    tree = read_yaml(path)
    if isinstance(tree.get("original"), dict):
        replace_places(tree["original"], data, start)
    try:
        study = Study.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        raise ConfigError(faults.render(path.name, error, Study)) from error
    if found := _study_faults(path.name, study):
        raise ConfigError(found)
    return study


def _study_faults(where: str, study: Study) -> list[str]:
    """List what would only come out when the turn of a training comes."""
    model = study.original.model
    if found := recipe_faults(where, study.original):
        for section in ("model", "method"):
            found = located(where, found, (section,), (ORIGINAL, section))
        return found
    methods = {name: method for name, method in study.methods.items() if isinstance(method, AstraMethod)}
    return [
        fault for name, method in methods.items() for fault in group_faults(where, ("methods", name), method, model)
    ]


@dataclass(frozen=True)
class Trained:
    """All trainings of a study."""

    original: Path
    summaries: Mapping[str, list[Summary]]
    """Of the control and of every method, a summary for each seed."""


def train_all(
    study: Study, out: Path, settings: Settings, start: Path | None, report: Callable[[str], Report]
) -> Trained:
    """Train whatever is not trained yet in the folder `out`; with `start`, that checkpoint is the original.

    Raises:
        ConfigError: A recipe does not fit its data.
        AstraError: A training failed.
    """
    settings = replace(settings, judged_on=study.split, resume=True)
    original = start or out / ORIGINAL
    if start is None:
        ensure_trained(study.original, original, settings, partial(report, ORIGINAL))
    summaries: dict[str, list[Summary]] = {CONTROL: [], **{name: [] for name in study.methods}}
    for seed in study.seeds:
        for name in summaries:
            recipe = _recipe(study, name, original, seed)
            shown = partial(report, f"{name}, seed {seed}")
            made = ensure_trained(recipe, out / f"{name}-{seed}", settings, shown)
            summaries[name].append(made)
    return Trained(original, summaries)


def make_tables(study: Study, trained: Trained, out: Path, progress: Progress) -> str:
    """Evaluate what is not evaluated yet, write `tables.md` and return it.

    Raises:
        ConfigError: A table asks for what cannot be.
    """
    parts = []
    for number, table in enumerate(study.tables):
        if table.ablation:
            made = _ablation(table, trained.summaries)
        else:
            made = _evaluation(study, table, out, trained.original, out / f"table-{number}", progress)
        parts.append(f"### {table.title}\n\n{_markdown(made).replace(f'{out}/', '')}\n")
        (out / TABLES_FILE).write_text("\n".join(parts), encoding="utf-8")
    return "\n".join(parts)


def _recipe(study: Study, name: str, start: Path, seed: int) -> Recipe:
    """Return the recipe of control or method with one seed."""
    model = study.original.model.model_copy(update={"checkpoint": str(start)})
    course = study.finetune.model_copy(update={"seed": seed})
    return Recipe(model=model, data=study.original.data, train=course, method=study.methods.get(name))


def _ablation(table: StudyTable, summaries: Mapping[str, list[Summary]]) -> Table:
    """Put trainings side by side, over all seeds."""
    made = Table("training", "metric", "test", "change against control", "seeds")
    control = [_tested(summary) for summary in summaries[CONTROL]]
    for name in (CONTROL, *table.ablation):
        values = [_tested(summary) for summary in summaries[name]]
        metric = summaries[name][0].metric
        scale = 1 if metric == PERPLEXITY else 100
        changes = [scale * (value - other) for value, other in zip(values, control, strict=True)]
        shown = _with_spread([scale * value for value in values])
        made.add_row(name, metric, shown, "" if name == CONTROL else _with_spread(changes, "+"), str(len(values)))
    return made


def _tested(summary: Summary) -> float:
    assert summary.test_value is not None, "a study asks for it"
    return summary.test_value


def _with_spread(values: list[float], sign: str = "") -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.2f}{spread}"


def _evaluation(study: Study, table: StudyTable, out: Path, start: Path, folder: Path, progress: Progress) -> Table:
    """Run real strategies on the checkpoints."""
    names = {name: f"{out}/{name}-{SEED}" for name in (CONTROL, *study.methods)} | {ORIGINAL: str(start)}
    filled = json.dumps(table.evaluation)
    for name, checkpoint in names.items():
        filled = filled.replace(f"{{{name}}}", checkpoint)
        for seed in study.seeds:
            filled = filled.replace(f"{{{name}:{seed}}}", checkpoint.replace(SEED, str(seed)))
    model = study.original.model.model_copy(update={"checkpoint": str(start)})
    given = {
        "model": model.model_dump(mode="json"),
        "data": study.original.data.model_dump(mode="json"),
        "seeds": list(study.seeds),
        "split": study.split,
    }
    config = parse_evaluation(given | json.loads(filled), where=table.title)
    rows = _stored_rows(folder, config)
    if rows is None:
        outcomes = evaluate_here(config, progress)
        rows = write_results(folder, config, outcomes)
    return table_of([row | {"settings": _by_name(str(row["settings"]), names)} for row in rows])


def _stored_rows(folder: Path, config: EvaluationConfig) -> list[dict[str, Cell]] | None:
    """Return the rows of this evaluation if it has been made."""
    stored = folder / f"{FILE_NAME}.json"
    record = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    rows: list[dict[str, Cell]] | None = record.get("rows")
    return rows if record.get("config") == config.model_dump(mode="json") else None


def _by_name(settings: str, names: Collection[str]) -> str:
    """Call trainings in a strategy's settings by their names, without the place of the seed."""
    for name in names:
        settings = settings.replace(f"={name}-{ANY_SEED}", f"={name}")
    return settings


def _markdown(table: Table) -> str:
    """Write a table as Markdown."""
    table.box = box.MARKDOWN
    text = io.StringIO()
    Console(file=text, width=TABLE_WIDTH, color_system=None).print(table)
    return "\n".join(line.strip() for line in text.getvalue().splitlines() if line.strip())
