"""Grouped vector quantiser: tokens to codes, codes to tokens, and codebooks on disk.

    legend: R rows (tokens), D width, G groups, K codewords, d = D / G

    u_RD --encode--> codes_RG --(wire)--> decode --> û_RD, or keys and values at once: `remote_tables`

Does not fit codebooks and does not pack bits.

Source: ASTRA, arXiv 2505.19342, grouped vector quantisation.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from astra.errors import ConfigError
from astra.nearest import NearestCodeword

__all__ = [
    "FORMAT_VERSION",
    "METADATA_FILE",
    "TENSOR_FILE",
    "CodebookSpec",
    "GroupedCodebook",
    "count_codes",
    "load_codebooks",
    "read_codewords",
    "save_codebooks",
    "translation",
]

FORMAT_VERSION: Literal[1] = 1
METADATA_FILE = "astra.json"
TENSOR_FILE = "codebooks.safetensors"


@dataclass(frozen=True)
class CodebookSpec:
    """The sizes that a set of codebooks must have to serve a model."""

    num_layers: int
    width: int
    num_groups: int
    num_codewords: int


class GroupedCodebook:
    """One layer's quantiser: each token is cut into G sub-vectors, each with a codebook of its own."""

    def __init__(self, codewords_GKd: Tensor):
        self.codewords_GKd = codewords_GKd.detach().float().contiguous()
        self.num_groups, self.num_codewords, self._group_width = self.codewords_GKd.shape
        self._nearest = [NearestCodeword(codewords_Kd) for codewords_Kd in self.codewords_GKd]

    def encode(self, u_RD: Tensor) -> Tensor:
        """Return codes_RG (int64): per group the nearest codeword, the lowest code among equals."""
        codes_RG = np.empty((u_RD.shape[0], self.num_groups), dtype=np.int64)
        for group, u_Rd in enumerate(torch.split(u_RD, self._group_width, dim=1)):
            codes_RG[:, group] = self._nearest[group](u_Rd)
        return torch.from_numpy(codes_RG)

    def decode(self, codes_RG: Tensor) -> Tensor:
        """Return û_RD, the codewords of `codes_RG` side by side."""
        groups = [F.embedding(codes_RG[:, group], self.codewords_GKd[group]) for group in range(self.num_groups)]
        return torch.cat(groups, dim=1)


def count_codes(codes_R: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes that occur, in order, and the log of how often each does."""
    counts_K = torch.bincount(codes_R)
    codes_U = counts_K.nonzero().squeeze(1)
    return codes_U, counts_K[codes_U].float().log()


def translation(before: GroupedCodebook, after: GroupedCodebook) -> Tensor:
    """Return table_KG: for every code of `before` the code of the nearest codeword of `after`, group by group."""
    codes_K1 = torch.arange(before.num_codewords)[:, None]
    return after.encode(before.decode(codes_K1.expand(-1, before.num_groups)))


class _Metadata(BaseModel):
    """What `astra.json` must say."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    format: Literal[1]
    num_layers: int
    width: int
    num_groups: int
    num_codewords: int
    fitted_on: dict[str, str | int]
    """What the fit depended on, for a reader; not checked."""


def save_codebooks(
    folder: Path, codebooks: list[GroupedCodebook], fitted_on: dict[str, str | int] | None = None
) -> None:
    """Write one codebook per layer into `folder`, which is made if need be."""
    num_groups, num_codewords, group_width = codebooks[0].codewords_GKd.shape
    spec = CodebookSpec(len(codebooks), num_groups * group_width, num_groups, num_codewords)
    metadata = _Metadata(format=FORMAT_VERSION, fitted_on=fitted_on or {}, **asdict(spec))
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_tensor_name(layer): codebook.codewords_GKd for layer, codebook in enumerate(codebooks)}
    # Not save_file, which lets nobody else read: a device's program may run as another user than `astra fit`.
    (folder / TENSOR_FILE).write_bytes(save(tensors))
    (folder / METADATA_FILE).write_text(json.dumps(metadata.model_dump(), indent=2) + "\n", encoding="utf-8")


def load_codebooks(folder: Path, spec: CodebookSpec) -> list[GroupedCodebook]:
    """Read the codebooks in `folder` and refuse anything but what `spec` asks for.

    Raises:
        ConfigError: See `read_codewords`.
    """
    return [GroupedCodebook(codewords_GKd) for codewords_GKd in read_codewords(folder, spec)]


def read_codewords(folder: Path, spec: CodebookSpec) -> list[Tensor]:
    """Read every layer's codewords_GKd without getting ready to encode, which takes time for wide ones.

    Raises:
        ConfigError: A file is missing, truncated, of another format or size; names the file and every fault.
    """
    faults = _metadata_faults(folder / METADATA_FILE, spec)
    if faults:
        raise ConfigError(faults)
    path = folder / TENSOR_FILE
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError([f"{path}: file must be whole safetensors, got {error}; run `astra fit` again"]) from error
    faults = _tensor_faults(path, tensors, spec)
    if faults:
        raise ConfigError(faults)
    return [tensors[_tensor_name(layer)] for layer in range(spec.num_layers)]


def _tensor_name(layer: int) -> str:
    return f"layer.{layer}"


def _metadata_faults(path: Path, spec: CodebookSpec) -> list[str]:
    try:
        metadata = _Metadata.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        return [f"{path}: file must be readable, got {error}; run `astra fit`"]
    except ValidationError as error:
        return [
            f"{path}: {'.'.join(map(str, fault['loc'])) or 'the file'} must be as `astra fit` writes it, "
            f"got {fault['input']!r} ({fault['msg']}); run `astra fit` again"
            for fault in error.errors()
        ]
    return [
        f"{path}: {field} must be {wanted}, got {getattr(metadata, field)}; run `astra fit` for this config"
        for field, wanted in asdict(spec).items()
        if getattr(metadata, field) != wanted
    ]


def _tensor_faults(path: Path, tensors: dict[str, Tensor], spec: CodebookSpec) -> list[str]:
    wanted = (spec.num_groups, spec.num_codewords, spec.width // spec.num_groups)
    names = [_tensor_name(layer) for layer in range(spec.num_layers)]
    faults = [] if set(tensors) == set(names) else [f"{path}: tensors must be {names}, got {sorted(tensors)}; refit"]
    for name in sorted(set(names) & set(tensors)):
        tensor = tensors[name]
        if tensor.dtype != torch.float32 or tuple(tensor.shape) != wanted:
            faults.append(
                f"{path}: {name} must be float32 {wanted}, got {tensor.dtype} {tuple(tensor.shape)}; "
                "run `astra fit` again"
            )
        elif not bool(torch.isfinite(tensor).all()):
            faults.append(f"{path}: {name} must be finite, got NaN or infinity; run `astra fit` again")
    return faults
