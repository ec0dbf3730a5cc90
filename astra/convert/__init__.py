"""Models that were trained elsewhere, turned into folders that `model.checkpoint` can name. One file per source.

llama2c    llama2.c's binary format: small Llamas with their tokenizers
minilm     the sentence encoder that a Python package carries, with a new classifier on top
"""

from astra.convert.llama2c import convert_llama2c
from astra.convert.minilm import convert_minilm

__all__ = ["convert_llama2c", "convert_minilm"]
