"""Which codebooks a config needs, and fitting those that are missing: into a cache, from calibration inputs.

    config ──► needs ──missing──► calibration inputs ──clustering──► codewords ──► cache

The cache folder's name is a hash of all that the codewords depend on, so a stale codebook cannot be picked up; a folder
appears in one rename, so a half-written one cannot either. Codebooks that were trained together with a
strategy's weights lie beside them, and are never fitted.
"""

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from astra.checkpoint import checkpoint_digest
from astra.clustering import fit_layers
from astra.codebook import (
    FORMAT_VERSION,
    METADATA_FILE,
    CodebookSpec,
    GroupedCodebook,
    load_codebooks,
    save_codebooks,
)
from astra.config import AstraConfig, BenchConfig, InputConfig, ModelConfig, model_of
from astra.data import DataConfig, load_examples, load_inputs, to_input
from astra.disk_cache import cache_root, check_writable
from astra.errors import ConfigError
from astra.models import load_model
from astra.strategy_config import AnyStrategy

__all__ = [
    "Calibration",
    "Need",
    "Tally",
    "bench_needs",
    "cache_folder",
    "codebook_faults",
    "ensure_fitted",
    "fit_missing",
    "needs_of",
    "num_calibration_inputs",
]

Calibration = InputConfig | DataConfig
"""What codebooks are fitted on: inputs of a benchmark, or a labelled set."""

Progress = Callable[[str, int, int], None]
"""Called with a label, how many layers are done, and of how many."""

FIT_VERSION = 1
"""Goes up when fitting changes its result, so that older cache folders are left alone."""

VECTORS_PER_CODEWORD = 10
MAX_CALIBRATION_INPUTS = 64
CLOZE_DIMENSIONS = 3
"""Of inputs [N, C, T] with a text for each of C candidates."""


@dataclass(frozen=True)
class Need:
    """Codebooks for one strategy and one model."""

    model: ModelConfig
    """With the strategy's own weights, if it has any."""
    astra: AstraConfig
    given: Calibration

    @property
    def trained(self) -> Path | None:
        """The folder of codebooks that were trained together with the strategy's weights, if there are any."""
        folder = None if self.astra.checkpoint is None else Path(self.astra.checkpoint)
        return folder if folder is not None and (folder / METADATA_FILE).is_file() else None

    @property
    def folder(self) -> Path:
        """Where the codebooks are or will be: beside the strategy's weights, or in the cache."""
        return self.trained or cache_folder(self.model, self.astra, self.given)

    def faults(self) -> list[str]:
        """Say what is wrong with the codebooks, if they are not there as they must be."""
        folder = self.folder
        if folder.is_dir():
            return codebook_faults(folder, self.model, self.astra)
        rule = "codebooks must be fitted before"
        return [f"astra {self.astra.settings}: {rule}, got no folder {folder}; run `astra fit` with this config"]


def needs_of(strategies: Iterable[AnyStrategy], model: ModelConfig, given: Calibration) -> list[Need]:
    """Return what codebooks the strategies need to run `model`, which `given` is to calibrate."""
    return [Need(model_of(model, each), each, given) for each in strategies if isinstance(each, AstraConfig)]


def bench_needs(config: BenchConfig) -> list[Need]:
    """Return what codebooks a benchmark needs, for its requests and for its labelled set."""
    needs = needs_of(config.strategies, config.model, config.input)
    accuracy = config.accuracy
    if accuracy is not None:
        needs += needs_of(accuracy.strategies or config.strategies, accuracy.model or config.model, accuracy.data)
    return needs


def ensure_fitted(config: BenchConfig, progress: Progress) -> None:
    """Do as `fit_missing` for all that a benchmark needs."""
    fit_missing(bench_needs(config), progress)


@dataclass(frozen=True)
class Tally:
    """How many codebooks came from where."""

    fitted: int
    cached: int
    trained: int


def fit_missing(needs: Iterable[Need], progress: Progress) -> Tally:
    """Fit and cache whatever codebooks are needed, not trained, and not in the cache intact.

    May run in several processes at once: each does the work, the first to finish is kept.

    Raises:
        ConfigError: The model or the calibration inputs cannot be read, or the cache folder cannot be written.
    """
    by_folder = {need.folder: need for need in needs}
    untrained = {folder: need for folder, need in by_folder.items() if need.trained is None}
    fitted = 0
    for folder, need in untrained.items():
        config, astra = need.model, need.astra
        if _is_intact(folder, config, astra):
            continue
        fitted += 1
        check_writable(folder.parent)
        model = load_model(config)
        inputs = to_input(_calibration_inputs(config, astra, need.given))
        label = f"fit astra {astra.settings}"
        codebooks = []
        for codebook in fit_layers(model, inputs, astra, seed=config.seed):
            codebooks.append(codebook)
            progress(label, len(codebooks), model.shape.num_layers)
        _publish(folder, codebooks, _fingerprint(config, astra, need.given))
    return Tally(fitted, len(untrained) - fitted, len(by_folder) - len(untrained))


def cache_folder(model: ModelConfig, astra: AstraConfig, given: Calibration) -> Path:
    """Return where the codebooks for these configs are or will be: in `$ASTRA_CACHE` or the user's cache folder.

    Raises:
        ConfigError: The checkpoint or the calibration inputs cannot be read.
    """
    fingerprint = json.dumps(_fingerprint(model, astra, given), sort_keys=True)
    digest = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
    return cache_root() / "codebooks" / f"{model.family}-{model.size or 'checkpoint'}-G{astra.num_groups}-{digest}"


def num_calibration_inputs(model: ModelConfig, astra: AstraConfig) -> int:
    """Return how many inputs give ten tokens per codeword: 10 of 1,024 tokens for 1,024 codewords, 64 at most."""
    num_vectors = VECTORS_PER_CODEWORD * astra.num_codewords
    return min(MAX_CALIBRATION_INPUTS, math.ceil(num_vectors / model.num_content_tokens))


def _calibration_inputs(model: ModelConfig, astra: AstraConfig, given: Calibration) -> npt.NDArray[Any]:
    """Return images or texts that nobody is asked about: of a labelled set, some of those to train on."""
    if isinstance(given, InputConfig):
        return load_inputs(given, model, num_calibration_inputs(model, astra), "calibrate")
    count = math.ceil(VECTORS_PER_CODEWORD * astra.num_codewords / model.num_content_tokens)
    inputs = load_examples(given, model, "train", limit=count).inputs
    return inputs.reshape(-1, inputs.shape[-1])[:count] if inputs.ndim == CLOZE_DIMENSIONS else inputs


def _fingerprint(model: ModelConfig, astra: AstraConfig, given: Calibration) -> dict[str, str | int]:
    """Return everything that the codewords depend on."""
    inputs = _calibration_inputs(model, astra, given)
    weights = f"torch {torch.__version__}" if model.checkpoint is None else checkpoint_digest(model.checkpoint)
    return {
        "format": FORMAT_VERSION,
        "fit": FIT_VERSION,
        "model": model.model_dump_json(exclude={"checkpoint"}),
        "weights": weights,
        "num_groups": astra.num_groups,
        "num_codewords": astra.num_codewords,
        "site": astra.site,
        "calibration_inputs": hashlib.sha256(inputs.tobytes()).hexdigest(),
    }


def _is_intact(folder: Path, model: ModelConfig, astra: AstraConfig) -> bool:
    """Say whether `folder` holds codebooks that load; remove one that does not, so that it can be made again."""
    if not folder.exists():
        return False
    if codebook_faults(folder, model, astra):
        shutil.rmtree(folder)
        return False
    return True


def codebook_faults(folder: Path, model: ModelConfig, astra: AstraConfig) -> list[str]:
    """Say what is wrong with the codebooks in `folder`, if they are not those that these configs need."""
    preset = model.preset
    width = astra.quantised_width(preset.width, preset.kv_width)
    try:
        load_codebooks(folder, CodebookSpec(preset.num_layers, width, astra.num_groups, astra.num_codewords))
    except ConfigError as error:
        return list(error.faults)
    return []


def _publish(folder: Path, codebooks: list[GroupedCodebook], fitted_on: dict[str, str | int]) -> None:
    """Write beside `folder`, then rename; when another process was faster, its folder stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fit-", dir=folder.parent) as scratch:
        written = Path(scratch) / folder.name
        save_codebooks(written, codebooks, fitted_on)
        try:
            written.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
