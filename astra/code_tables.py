"""How probable each code is, given what its receiver knows: the tables of the entropy coder, and on disk.

    what is known                        who can use it
    the token's position                 everybody: rows that travel alone (datagrams), and layer 0
    its code of the layer before         where everything arrives, from layer 1 on

What is known is put into one of C classes, by a table again; each class has probabilities for the K codes of a group.
Holds tables, checks and stores them; `code_statistics` makes them, `coded_rows` uses them.

    legend: G groups, C classes, K codewords, P positions (content tokens)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from astra.codebook import CodebookSpec
from astra.entropy import PROBABILITY_TOTAL
from astra.errors import ConfigError

__all__ = ["TABLES_FILE", "CodeTables", "Given", "load_tables", "save_tables"]

TABLES_FILE = "codes.safetensors"

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Given:
    """One layer's probabilities given one thing that is known."""

    classes_GN: npt.NDArray[np.int64]
    """Class of each of the N things that may be known: positions, or codes of the layer before."""
    probabilities_GCK: npt.NDArray[np.uint16]
    """In units of 1 / PROBABILITY_TOTAL; at least one each."""
    bits: float
    """What a code costs on average, by inputs that the probabilities were not counted on."""


@dataclass(frozen=True)
class CodeTables:
    """The tables of all layers."""

    by_position: tuple[Given, ...]
    by_code: tuple[Given, ...]
    """Of layer 1 and all after it."""

    def expected_bits(self, *, alone: bool) -> float:
        """Return what a code costs, the mean over the layers; `alone`: rows that must do without the layer before.

        Never more than packed: what is not shorter goes out packed.
        """
        after = self.by_position[1:] if alone else self.by_code
        used = [self.by_position[0], *after]
        packed = math.log2(self.by_position[0].probabilities_GCK.shape[-1])
        return sum(min(given.bits, packed) for given in used) / len(used)


def save_tables(folder: Path, tables: CodeTables) -> None:
    """Write the tables beside the codebooks in `folder`."""
    arrays: dict[str, _Array] = {}
    for way, givens in (("position", tables.by_position), ("code", tables.by_code)):
        for layer, given in enumerate(givens, start=len(tables.by_position) - len(givens)):
            prefix = f"layer.{layer}.{way}"
            arrays[f"{prefix}.classes"] = given.classes_GN.astype(np.uint16)
            arrays[f"{prefix}.probabilities"] = given.probabilities_GCK
            arrays[f"{prefix}.bits"] = np.array([given.bits], np.float64)
    (folder / TABLES_FILE).write_bytes(save(arrays))


def load_tables(folder: Path, spec: CodebookSpec, num_positions: int) -> CodeTables:
    """Read the tables in `folder` and refuse any that are not for such codebooks and so many content tokens.

    Raises:
        ConfigError: The file is missing, truncated, or of other sizes; names the file and every fault.
    """
    path = folder / TABLES_FILE
    try:
        arrays = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError([f"{path}: file must be whole safetensors, got {error}; run `astra fit`"]) from error
    known = {"position": num_positions, "code": spec.num_codewords}
    names = [f"layer.{layer}.{way}" for layer in range(spec.num_layers) for way in known if layer or way == "position"]
    faults = [fault for name in names for fault in _faults(f"{path}: {name}", name, arrays, spec, known)]
    if faults:
        raise ConfigError([f"{fault}; run `astra fit` again" for fault in faults])
    givens = {name: _given(name, arrays) for name in names}
    return CodeTables(
        tuple(givens[name] for name in names if name.endswith("position")),
        tuple(givens[name] for name in names if name.endswith("code")),
    )


def _given(name: str, arrays: Mapping[str, _Array]) -> Given:
    bits = float(arrays[f"{name}.bits"][0])
    return Given(arrays[f"{name}.classes"].astype(np.int64), arrays[f"{name}.probabilities"], bits)


def _faults(
    where: str, name: str, arrays: Mapping[str, _Array], spec: CodebookSpec, known: Mapping[str, int]
) -> list[str]:
    """Say what is wrong with one layer's tables of one way."""
    missing = [part for part in ("classes", "probabilities", "bits") if f"{name}.{part}" not in arrays]
    if missing:
        return [f"{where}.{part} must be there, got nothing of that name" for part in missing]
    classes_GN, probabilities_GCK, bits = (arrays[f"{name}.{part}"] for part in ("classes", "probabilities", "bits"))
    asked = (spec.num_groups, known[name.rpartition(".")[2]])
    if classes_GN.dtype != np.uint16 or classes_GN.shape != asked:
        return [f"{where}.classes must be uint16 {asked}, got {classes_GN.dtype} {classes_GN.shape}"]
    outer = (probabilities_GCK.shape[0], probabilities_GCK.shape[-1]) if probabilities_GCK.ndim == 3 else ()
    if probabilities_GCK.dtype != np.uint16 or outer != (spec.num_groups, spec.num_codewords):
        rule = f"uint16 ({spec.num_groups}, classes, {spec.num_codewords})"
        return [f"{where}.probabilities must be {rule}, got {probabilities_GCK.dtype} {probabilities_GCK.shape}"]
    sums_GC = probabilities_GCK.sum(axis=-1, dtype=np.int64)
    faults = []
    if int(classes_GN.max(initial=0)) >= probabilities_GCK.shape[1]:
        faults.append(f"{where}.classes must be below {probabilities_GCK.shape[1]}, got {classes_GN.max()}")
    if (sums_GC != PROBABILITY_TOTAL).any() or not probabilities_GCK.all():
        faults.append(f"{where}.probabilities must be at least 1 and add up to {PROBABILITY_TOTAL}, got others")
    if bits.shape != (1,) or not np.isfinite(bits).all():
        faults.append(f"{where}.bits must be one finite number, got {bits!r}")
    return faults
