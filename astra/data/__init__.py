"""What models read: inputs without labels to measure on, and labelled examples to train and evaluate on.

inputs.py, text.py   inputs of a benchmark: images or texts, by number and seed; no labels
examples.py          labelled sets by name; each published format has a file of its own
"""

from astra.data.examples import Examples, Split, load_examples
from astra.data.inputs import Purpose, load_images, load_inputs, to_input
from astra.data_config import DataConfig

__all__ = [
    "DataConfig",
    "Examples",
    "Purpose",
    "Split",
    "load_examples",
    "load_images",
    "load_inputs",
    "to_input",
]
