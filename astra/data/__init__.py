"""What models read: inputs without labels to measure on, and labelled examples to train and evaluate on.

inputs.py, text.py   inputs of a benchmark: images or texts, by number and seed; no labels
"""

from astra.data.inputs import Purpose, load_images, load_inputs, to_input

__all__ = ["Purpose", "load_images", "load_inputs", "to_input"]
