"""Inputs to calibrate codebooks and their tables on: those that nobody is asked about.

Of a benchmark's inputs, a split of their own, of which there are few; of a labelled set, some of those to train on.
"""

import math
from typing import Any

import numpy.typing as npt

from astra.config import AstraConfig, InputConfig, ModelConfig
from astra.data import DataConfig, load_examples, load_inputs

__all__ = [
    "VECTORS_PER_CODEWORD",
    "Calibration",
    "calibration_inputs",
    "inputs_to_count",
    "num_calibration_inputs",
]

Calibration = InputConfig | DataConfig
"""What codebooks are fitted on: inputs of a benchmark, or a labelled set."""

VECTORS_PER_CODEWORD = 10
_COUNTED_PER_CODEWORD = {"inputs": 40, "labelled": 200}
"""Tokens per codeword that probabilities are counted on: of a benchmark's inputs, of which there are few; of a set."""
_MAX_INPUTS = 64
_CLOZE_DIMENSIONS = 3
"""Of inputs [N, C, T] with a text for each of C candidates."""


def num_calibration_inputs(model: ModelConfig, astra: AstraConfig, per_codeword: int = VECTORS_PER_CODEWORD) -> int:
    """Return how many inputs give ten tokens per codeword: 10 of 1,024 tokens for 1,024 codewords, 64 at most."""
    return min(_MAX_INPUTS, math.ceil(per_codeword * astra.num_codewords / model.num_content_tokens))


def calibration_inputs(
    model: ModelConfig, astra: AstraConfig, given: Calibration, per_codeword: int = VECTORS_PER_CODEWORD
) -> npt.NDArray[Any]:
    """Return images or texts whose tokens are so many for each codeword, if there are."""
    if isinstance(given, InputConfig):
        return load_inputs(given, model, num_calibration_inputs(model, astra, per_codeword), "calibrate")
    count = math.ceil(per_codeword * astra.num_codewords / model.num_content_tokens)
    inputs = load_examples(given, model, "train", limit=count).inputs
    return inputs.reshape(-1, inputs.shape[-1])[:count] if inputs.ndim == _CLOZE_DIMENSIONS else inputs


def inputs_to_count(model: ModelConfig, astra: AstraConfig, given: Calibration) -> npt.NDArray[Any]:
    """Return those that an entropy coder's probabilities are counted on: more, since there are more numbers to find."""
    kind = "inputs" if isinstance(given, InputConfig) else "labelled"
    return calibration_inputs(model, astra, given, _COUNTED_PER_CODEWORD[kind])
