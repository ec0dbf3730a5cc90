"""Which function makes which family's adapter; imports all of them, and transformers with them."""

from collections.abc import Callable, Mapping

from astra.config import ModelConfig
from astra.models import ModelAdapter
from astra.models.bert import load_bert
from astra.models.gpt2 import load_gpt2
from astra.models.llama import load_llama
from astra.models.vit import load_vit

__all__ = ["LOADERS"]

LOADERS: Mapping[str, Callable[[ModelConfig], ModelAdapter]] = {
    "vit": load_vit,
    "bert": load_bert,
    "gpt2": load_gpt2,
    "llama": load_llama,
}
