"""Which codebooks a config needs, and fitting those that are missing: into a cache, from calibration inputs.

    config ──► needs ──missing──► calibration inputs ──clustering──► codewords ──► cache

The cache folder's name is a hash of all that the codewords depend on, so a stale codebook cannot be picked up; a folder
appears in one rename, so a half-written one cannot either. Codebooks that were trained together with a
strategy's weights lie beside them, and are never fitted.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from astra.calibration import Calibration, calibration_inputs, inputs_to_count
from astra.checkpoint import checkpoint_digest
from astra.clustering import fit_layers
from astra.code_statistics import tables_of
from astra.code_tables import TABLES_FILE, CodeTables, load_tables, save_tables
from astra.codebook import (
    FORMAT_VERSION,
    METADATA_FILE,
    TENSOR_FILE,
    CodebookSpec,
    GroupedCodebook,
    load_codebooks,
    read_codewords,
    save_codebooks,
)
from astra.config import AstraConfig, BenchConfig, ModelConfig, model_of
from astra.data import to_input
from astra.disk_cache import cache_root, check_writable
from astra.errors import ConfigError
from astra.models import load_model
from astra.nesting import losses, nested, sent_codebooks
from astra.strategy_config import AnyStrategy
from astra.transport_config import DatagramConfig

__all__ = [
    "Need",
    "Tally",
    "bench_needs",
    "cache_folder",
    "codebook_faults",
    "ensure_fitted",
    "fit_missing",
    "needs_of",
]

Progress = Callable[[str, int, int], None]
"""Called with a label, how many layers are done, and of how many."""

FIT_VERSION = 1
"""Goes up when fitting changes its result, so that older cache folders are left alone."""

DERIVED_VERSION = 2
"""The same for what is derived from codebooks."""


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
    def codebooks(self) -> Path:
        """Where the codebooks are or will be: beside the strategy's weights, or in the cache."""
        return self.trained or cache_folder(self.model, self.astra, self.given)

    @property
    def folder(self) -> Path:
        """Where what is loaded is or will be: the codebooks, or what is derived: in nested order, or with tables."""
        codebooks = self.codebooks
        has_tables = self.astra.coding == "fixed" or (codebooks / TABLES_FILE).is_file()
        if self.astra.code_bits is None and has_tables:
            return codebooks
        tensors = codebooks / TENSOR_FILE
        known_by_content = self.trained is not None and tensors.is_file()
        told: dict[str, str | int] = {
            "codebooks": hashlib.sha256(tensors.read_bytes()).hexdigest() if known_by_content else codebooks.name,
            "derived": DERIVED_VERSION,
            "coding": self.astra.coding,
            "code_bits": self.astra.bits if self.astra.coding == "entropy" else "any",
        }
        return _folder_of(self.model, self.astra, _fingerprint(self.model, self.astra, self.given) | told, "-derived")

    @property
    def plain(self) -> AstraConfig:
        """What the codebooks themselves must be for, from which others are derived."""
        return self.astra.model_copy(update={"code_bits": None, "coding": "fixed"})

    def coded_share(self) -> float:
        """Return what codes are expected to take of the bits of packed ones, by the tables that are there."""
        if self.astra.coding == "fixed":
            return 1.0
        tables = load_tables(self.folder, _coded_spec(self.model, self.astra), self.model.num_content_tokens)
        alone = isinstance(self.astra.transport, DatagramConfig)
        return tables.expected_bits(alone=alone) / self.astra.bits

    def losses(self) -> list[list[float]]:
        """Return for every layer what its codewords lose by fewer bits; only where these are still to be chosen.

        Raises:
            ConfigError: The codebooks are not there as they must be.
        """
        return [losses(codewords_GKd) for codewords_GKd in read_codewords(self.folder, _spec(self.model, self.astra))]

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
    needs = needs_of(config.candidates, config.model, config.input)
    accuracy = config.accuracy
    if accuracy is not None:
        needs += needs_of(accuracy.strategies or config.candidates, accuracy.model or config.model, accuracy.data)
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
    needs = list(needs)
    by_folder = {need.codebooks: need for need in needs}
    untrained = {folder: need for folder, need in by_folder.items() if need.trained is None}
    fitted = 0
    for folder, need in untrained.items():
        config, astra = need.model, need.plain
        if _is_intact(folder, config, astra):
            continue
        fitted += 1
        check_writable(folder.parent)
        model = load_model(config)
        inputs = to_input(calibration_inputs(config, astra, need.given))
        label = f"fit astra {astra.settings}"
        codebooks = []
        for codebook in fit_layers(model, inputs, astra, seed=config.seed):
            codebooks.append(codebook)
            progress(label, len(codebooks), model.shape.num_layers)
        _publish(folder, codebooks, _fingerprint(config, astra, need.given))
    _derive_missing(needs, progress)
    return Tally(fitted, len(untrained) - fitted, len(by_folder) - len(untrained))


def _derive_missing(needs: Iterable[Need], progress: Progress) -> None:
    """Make and cache what is needed of tables and of codebooks in nested order, which have coarser ones in them."""
    for folder, need in {need.folder: need for need in needs}.items():
        astra = need.astra
        if folder == need.codebooks or _is_intact(folder, need.model, astra):
            continue
        check_writable(folder.parent)
        codebooks = load_codebooks(need.codebooks, _spec(need.model, need.plain))
        if astra.code_bits is not None:
            codebooks = [nested(codebook) for codebook in codebooks]
        tables = None
        if astra.coding == "entropy":
            tables = _counted(need, sent_codebooks([codebook.codewords_GKd for codebook in codebooks], astra))
        _publish(folder, codebooks, _fingerprint(need.model, astra, need.given), tables)
        progress(f"derive astra {astra.settings}", len(codebooks), len(codebooks))


def _counted(need: Need, codebooks: list[GroupedCodebook]) -> CodeTables:
    """Return an entropy coder's tables for these codebooks."""
    model = load_model(need.model)
    inputs = to_input(inputs_to_count(need.model, need.astra, need.given))
    return tables_of(model, inputs, codebooks, need.astra.site, seed=need.model.seed)


def cache_folder(model: ModelConfig, astra: AstraConfig, given: Calibration) -> Path:
    """Return where the codebooks for these configs are or will be: in `$ASTRA_CACHE` or the user's cache folder.

    Raises:
        ConfigError: The checkpoint or the calibration inputs cannot be read.
    """
    return _folder_of(model, astra, _fingerprint(model, astra, given))


def _folder_of(model: ModelConfig, astra: AstraConfig, fingerprint: dict[str, str | int], kind: str = "") -> Path:
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
    name = f"{model.family}-{model.size or 'checkpoint'}-G{astra.num_groups}{kind}-{digest}"
    return cache_root() / "codebooks" / name


def _fingerprint(model: ModelConfig, astra: AstraConfig, given: Calibration) -> dict[str, str | int]:
    """Return everything that the codewords depend on."""
    inputs = calibration_inputs(model, astra, given)
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
    spec = _spec(model, astra)
    try:
        read_codewords(folder, spec)
        if astra.coding == "entropy":
            load_tables(folder, _coded_spec(model, astra), model.num_content_tokens)
    except ConfigError as error:
        return list(error.faults)
    return []


def _spec(model: ModelConfig, astra: AstraConfig) -> CodebookSpec:
    """Return the sizes of the codebooks that these configs need."""
    preset = model.preset
    width = astra.quantised_width(preset.width, preset.kv_width)
    return CodebookSpec(preset.num_layers, width, astra.num_groups, astra.num_codewords)


def _coded_spec(model: ModelConfig, astra: AstraConfig) -> CodebookSpec:
    """Return the sizes of those whose codes an entropy coder's tables are for: with fewer bits, coarser ones."""
    return replace(_spec(model, astra), num_codewords=1 << astra.bits)


def _publish(
    folder: Path,
    codebooks: list[GroupedCodebook],
    fitted_on: dict[str, str | int],
    tables: CodeTables | None = None,
) -> None:
    """Write beside `folder`, then rename; when another process was faster, its folder stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fit-", dir=folder.parent) as scratch:
        written = Path(scratch) / folder.name
        save_codebooks(written, codebooks, fitted_on)
        if tables is not None:
            save_tables(written, tables)
        try:
            written.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
