"""Weights for a Hugging Face class: drawn from a seed, or read from a checkpoint. The same for every family.

    seed ──seeded──► model          folder or hub name ──read_checkpoint──► model

Refuses whatever does not fit, naming every fault; fills nothing in and skips nothing.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from astra.checkpoint import checkpoint_folder
from astra.config import ModelConfig
from astra.errors import ConfigError
from astra.model_faults import missing_files, model_faults

__all__ = ["read_checkpoint", "seeded"]

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


def read_checkpoint(make: type[_Model], config: ModelConfig) -> _Model:
    """Read `config.json` and `model.safetensors` into the Hugging Face class `make`, in fp32.

    Raises:
        ConfigError: The checkpoint is missing, damaged, of another family or size, or lacks weights; names every fault.
    """
    assert config.checkpoint is not None, "only called where there is one"
    folder = checkpoint_folder(config.checkpoint)
    if missing := missing_files(folder):
        advice = "name a folder saved by save_pretrained"
        raise ConfigError([f"{folder}: checkpoint must hold {name}, got no such file; {advice}" for name in missing])
    if faults := model_faults("config", config.model_copy(update={"checkpoint": str(folder)})):
        raise ConfigError(faults)
    # The terminal belongs to the display of the run, and what the library would warn of is a fault here.
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    loader: Any = make
    try:
        model, loading = loader.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32, output_loading_info=True, use_safetensors=True
        )
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            [f"{folder}: checkpoint must be a readable {make.__name__}, got {error}; save it with save_pretrained"]
        ) from error
    lost = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in loading[kind])
    if lost:
        raise ConfigError([f"{folder}: checkpoint must hold every weight, got none for {lost}; save the whole model"])
    read: _Model = model.train(False)
    return read
