"""Weights for a Hugging Face class: drawn from a seed, or read from a checkpoint. The same for every family.

    seed ──seeded──► model          folder or hub name ──read_checkpoint──► model

Refuses whatever does not fit, naming every fault; fills nothing in and skips nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from astra.checkpoint import checkpoint_folder
from astra.config import ModelConfig
from astra.errors import ConfigError
from astra.model_faults import missing_files, model_faults

__all__ = ["label_faults", "length_faults", "read_checkpoint", "seeded"]

_Model = TypeVar("_Model", bound=PreTrainedModel)

STANDARD_DEVIATION = 0.02
"""What ViT, BERT, GPT-2 and Llama are all initialised with."""


def seeded(make: Callable[[], _Model], seed: int) -> _Model:
    """Build a model with weights drawn from `seed`: the same on every rank with the same torch.

    Matrices and embeddings are normal, biases 0, norms 1. Made on the meta device and filled in the order of the
    parameters: ViT-Base takes 1 s, where the library's initialisation draws everything twice. Random weights attend
    almost evenly, so agreement between strategies says little about a trained model; speed is the same. Buffers hold
    garbage afterwards: whoever has some must make them again.
    """
    with torch.device("meta"):
        model = make()
    model.to_empty(device="cpu")
    model.tie_weights()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, STANDARD_DEVIATION, generator=generator)
            else:  # the only vectors called weight are those of norms
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    model.train(False)
    return model


def read_checkpoint(
    make: Any, config: ModelConfig, further_faults: Callable[[Path, Any], list[str]] = lambda folder, found: []
) -> Any:
    """Read `config.json` and `model.safetensors` into the Hugging Face class `make`, in fp32.

    `further_faults` lists what else is wrong, from the folder and the stored config.

    Raises:
        ConfigError: The checkpoint is missing, damaged, of another family or size, or lacks weights; names every fault.
    """
    assert config.checkpoint is not None, "only called where there is one"
    folder = checkpoint_folder(config.checkpoint)
    if missing := missing_files(folder):
        advice = "name a folder saved by save_pretrained"
        raise ConfigError([f"{folder}: checkpoint must hold {name}, got no such file; {advice}" for name in missing])
    # The terminal belongs to the display of the run, and what the library would warn of is a fault here.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        model, loading = make.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            [f"{folder}: checkpoint must be a readable {make.__name__}, got {error}; save it with save_pretrained"]
        ) from error
    found = model.config
    faults = model_faults(str(folder), config.model_copy(update={"checkpoint": str(folder)}))
    if found.model_type != config.family:
        faults.append(
            f"{folder}/config.json: model_type must be {config.family!r}, got {found.model_type!r}; "
            "set model.family to it"
        )
    lost = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in loading[kind])
    if lost:
        faults.append(f"{folder}: checkpoint must hold every weight, got none for {lost}; save the whole model")
    faults += further_faults(folder, found)
    if faults:
        raise ConfigError(faults)
    return model.train(False)


def label_faults(config: ModelConfig, folder: Path, found: Any) -> list[str]:
    """Compare the number of classes of a classifier."""
    if found.num_labels == config.num_classes:
        return []
    return [
        f"{folder}: num_labels must be that of the checkpoint, {found.num_labels}, got {config.num_classes}; "
        "set model.num_labels"
    ]


def length_faults(config: ModelConfig, folder: Path, positions: int) -> list[str]:
    """Compare the tokens of a text, class token included, with the rows of a learned position embedding."""
    num_class_tokens = 1 if config.family == "bert" else 0
    longest = positions - num_class_tokens
    if config.num_content_tokens <= longest:
        return []
    return [
        f"{folder}: num_tokens must be at most {longest} for this checkpoint, got {config.num_content_tokens}; "
        "set model.num_tokens"
    ]
