"""One training: steps, looks at the validation set, states to go on from, and the checkpoint.

    recipe ──► examples, Trainee ──► for each step: batch ─► rows ─► loss ─► AdamW        log.csv, loss.png
                                     every so often: metric on the validation set         state.safetensors
                                     at the end: config.json, model.safetensors, codebooks.safetensors, astra.json

A training that is killed and resumed ends with the same weights as one that was not (on the same machine): order,
augmentation, assignment and noise all follow from the seed and the step.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from astra.codebook import CodebookSpec, load_codebooks, save_codebooks
from astra.data import Examples, Split, load_examples, to_input
from astra.errors import AstraError, ConfigError
from astra.models import build_model, save_checkpoint
from astra.models.weights import STANDARD_DEVIATION
from astra.tokenizer import load_tokenizer
from astra.training.augment import Batches
from astra.training.log import TrainingLog
from astra.training.objectives import Judgement, loss_of, metric_of, reads_every_row
from astra.training.quantiser import LayerQuantiser
from astra.training.recipe import AstraMethod, Recipe
from astra.training.state import STATE_FILE, Progress, restore, write_state
from astra.training.summary import Summary, write_summary
from astra.training.trainee import Trainee, fitted_quantisers

__all__ = ["Report", "Settings", "Training"]

CALIBRATION_VECTORS_PER_CODEWORD = 10
EVALUATION_BATCH = 100
LOG_EVERY = 20
MOMENTUM = (0.9, 0.999)

Report = Callable[[int, int, float, Judgement | None], None]
"""Called with steps done, steps in all, the last loss, and the last look at the validation set."""

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Settings:
    """Where and how a recipe is followed; the result is the same but for rounding."""

    torch_device: str = "cpu"
    resume: bool = False
    state_every_s: float = 300.0
    """Seconds between two states that a killed training goes on from."""
    judged_on: Split | None = None
    """Judge the kept weights on all of this split too, once."""
    precision: Precision | None = None
    """Of products and what comes between them; weights are fp32. None for bf16 on CUDA and fp32 on CPUs."""


class Training:
    """Everything that one training holds."""

    def __init__(self, recipe: Recipe, out: Path, settings: Settings):
        self._recipe, self._out, self._settings = recipe, out, settings
        self._device = torch.device(settings.torch_device)
        course = recipe.train
        self._training_set = _load(recipe, "train", course.train_limit)
        self._validation_set = _load(recipe, "validation", course.validation_limit)
        self._batches = Batches(self._training_set, course.batch_size, course.seed, course.augment)
        self._trainee = self._make_trainee()
        self._optimiser = AdamW(_decayed(self._trainee.model, course.weight_decay), lr=0.0, betas=MOMENTUM, fused=True)
        self._progress = Progress(recipe.digest)
        self._log = TrainingLog(out)
        self._original: Judgement | None = None

    def restore(self, progress: Progress, tensors: dict[str, Tensor]) -> None:
        """Go back to a state."""
        restore(tensors, self._parts, self._optimiser)
        self._progress = progress
        self._log.cut_after(progress.step)

    def run(self, report: Report) -> Summary:
        """Take all steps that are left, and write the checkpoint."""
        course, saved_s, begin_s = self._recipe.train, time.monotonic(), time.monotonic()
        look = None
        for step in range(self._progress.step, course.steps):
            loss, commitment = self._step(step)
            self._progress = replace(self._progress, step=step + 1)
            if (step + 1) % course.evaluate_every == 0 or step + 1 == course.steps:
                look = self._look()
                self._log.look(step + 1, look.metric, look.value)
            if (step + 1) % LOG_EVERY == 0 or step + 1 == course.steps:
                self._log.step(step + 1, loss, commitment, self._rate(step), time.monotonic() - begin_s)
                report(step + 1, course.steps, loss, look)
            if self._is_stuck:
                break
            if time.monotonic() - saved_s > self._settings.state_every_s:
                write_state(self._out, self._progress, self._parts, self._optimiser)
                saved_s = time.monotonic()
        return self._finish()

    def _step(self, step: int) -> tuple[float, float]:
        """Take one step; return loss and commitment."""
        course, method = self._recipe.train, self._recipe.method
        inputs, labels = self._batches.at(step)
        generator = torch.Generator().manual_seed(_seed_of(course.seed, step))
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate(step)
        self._trainee.train(True)
        with self._autocast():
            adapter = self._trainee.adapter()
            rows = self._trainee.rows(adapter, self._put(inputs), every=self._every, generator=generator)
            given = torch.from_numpy(labels).to(self._device)
            loss = loss_of(self._training_set, adapter.head, rows.x, given, course.label_smoothing)
            beta = method.beta if isinstance(method, AstraMethod) else 0.0
            total = loss + beta * rows.commitment
        total.backward()  # type: ignore[no-untyped-call]  # torch 2.13 has no annotation there
        nn.utils.clip_grad_norm_(self._trainee.model.parameters(), course.gradient_clip)
        self._optimiser.step()
        self._optimiser.zero_grad()
        value = float(total.detach())
        if not math.isfinite(value):
            raise AstraError(f"train: loss must stay finite, got {value} in step {step}; lower train.learning_rate")
        return value, float(rows.commitment.detach())

    @torch.no_grad()
    def judge(self, examples: Examples) -> Judgement:
        """Judge by a labelled set, with tokens dealt evenly and without noise."""
        self._trainee.train(False)
        adapter, generator = self._trainee.adapter(), torch.Generator()
        batches = []
        size = EVALUATION_BATCH if not self._every else self._recipe.train.batch_size
        for begin in range(0, len(examples.inputs), size):
            part = slice(begin, begin + size)
            inputs = self._put(examples.inputs[part])
            with self._autocast():
                x = self._trainee.rows(adapter, inputs, every=self._every, generator=generator).x
            batches.append((x.float(), torch.from_numpy(examples.labels[part]).to(self._device)))
        return metric_of(examples, adapter.head, batches)

    def _look(self) -> Judgement:
        """Judge, and keep the weights if they are the best so far and best ones are wanted."""
        look, earlier = self.judge(self._validation_set), self._progress
        best = None if earlier.best is None else Judgement(look.metric, earlier.best)
        if look.beats(best):
            self._progress = replace(earlier, best=look.value, best_step=earlier.step, looks_without_gain=0)
            if self._recipe.train.patience is not None:
                self._save()
        else:
            self._progress = replace(earlier, looks_without_gain=earlier.looks_without_gain + 1)
        return look

    @property
    def _is_stuck(self) -> bool:
        patience = self._recipe.train.patience
        return patience is not None and self._progress.looks_without_gain >= patience

    def _finish(self) -> Summary:
        progress, patience = self._progress, self._recipe.train.patience
        look = self._log.last_look if patience is None else self._log.look_at(progress.best_step)
        if patience is None:
            self._save()
        test_value = None
        if self._settings.judged_on is not None:
            self._trainee = self._trainee if patience is None else self._kept()
            test_value = self.judge(_load(self._recipe, self._settings.judged_on, None)).value
        summary = Summary(
            recipe_digest=progress.recipe_digest,
            method="none" if self._recipe.method is None else self._recipe.method.name,
            metric=look[0],
            value=look[1],
            steps=progress.step,
            kept_step=progress.step if patience is None else progress.best_step,
            test_value=test_value,
        )
        self._log.plot()
        write_summary(self._out, summary, self._recipe)
        (self._out / STATE_FILE).unlink(missing_ok=True)
        return summary

    def _save(self) -> None:
        """Write the checkpoint."""
        model, method = self._recipe.model, self._recipe.method
        tokenizer = load_tokenizer(model, self._recipe.data.tokenizer).to_json() if model.is_text else None
        save_checkpoint(self._out, self._trainee.model, tokenizer=tokenizer)
        if isinstance(method, AstraMethod):
            trained_on: dict[str, str | int] = {"step": self._progress.step, "recipe": self._progress.recipe_digest}
            save_codebooks(self._out, self._trainee.codebooks(), {**trained_on, "site": method.site})

    def _kept(self) -> Trainee:
        """Read the checkpoint that was written."""
        method, config = self._recipe.method, self._recipe.model.model_copy(update={"checkpoint": str(self._out)})
        model = build_model(config)
        model.to(self._device)  # type: ignore[arg-type]  # the library's stub takes no torch.device
        if not isinstance(method, AstraMethod):
            return Trainee(model, config.num_tokens, method)
        shapes = [codebook.codewords_GKd.shape for codebook in self._trainee.codebooks()]
        num_groups, num_codewords, group_width = shapes[0]
        spec = CodebookSpec(len(shapes), num_groups * group_width, num_groups, num_codewords)
        layers = [
            LayerQuantiser.from_codebook(each, method).to(self._device) for each in load_codebooks(self._out, spec)
        ]
        return Trainee(model, config.num_tokens, method, layers)

    def _make_trainee(self) -> Trainee:
        method, course = self._recipe.method, self._recipe.train
        model, num_tokens = build_model(self._recipe.model), self._recipe.model.num_tokens
        if self._recipe.model.checkpoint is None:
            _rescale(model, course.weight_std / STANDARD_DEVIATION)
        model.to(self._device)  # type: ignore[arg-type]  # the library's stub takes no torch.device
        plain = Trainee(model, num_tokens, None)
        if not isinstance(method, AstraMethod):
            return Trainee(model, num_tokens, method)
        adapter = plain.adapter()
        wanted = CALIBRATION_VECTORS_PER_CODEWORD * method.num_codewords
        count = min(len(self._training_set.inputs), math.ceil(wanted / adapter.shape.num_content_tokens))
        inputs = self._put(self._training_set.inputs[:count])
        quantisers = fitted_quantisers(adapter, inputs, method, course.seed)
        return Trainee(model, num_tokens, method, [quantiser.to(self._device) for quantiser in quantisers])

    @property
    def _parts(self) -> dict[str, nn.Module]:
        return {"model": self._trainee.model, "quantisers": self._trainee.quantisers}

    @property
    def _every(self) -> bool:
        return reads_every_row(self._training_set)

    def _put(self, inputs: Any) -> Tensor:
        return to_input(inputs).to(self._device)

    def _rate(self, step: int) -> float:
        """Return the learning rate: up in a line, down in a cosine."""
        course = self._recipe.train
        if step < course.warmup_steps:
            return course.learning_rate * (step + 1) / course.warmup_steps
        share = (step - course.warmup_steps) / (course.steps - course.warmup_steps)
        return course.learning_rate * 0.5 * (1 + math.cos(math.pi * share))

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        """Compute in the precision that was asked for; without one, in bf16 on CUDA."""
        precision = self._settings.precision or ("bf16" if self._device.type == "cuda" else "fp32")
        with torch.autocast(self._device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield


def _load(recipe: Recipe, split: Split, limit: int | None) -> Examples:
    examples = load_examples(recipe.data, recipe.model, split, limit=limit)
    count, size = len(examples.inputs), recipe.train.batch_size
    if split == "train" and count < size:
        raise ConfigError(
            [f"recipe: train.batch_size must be at most the {count} training examples, got {size}; make it smaller"]
        )
    return examples


@torch.no_grad()
def _rescale(model: nn.Module, factor: float) -> None:
    """Make matrices and embeddings larger or smaller."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(factor)


def _decayed(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group the parameters: matrices decay, vectors do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters if parameter.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _seed_of(seed: int, step: int) -> int:
    """Mix seed and step into a seed for the step."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{step}".encode()).digest()[:6])
