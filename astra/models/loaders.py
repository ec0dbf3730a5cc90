"""Which function makes which family's model and adapter; imports all of them, and transformers with them."""

from collections.abc import Callable, Mapping

import torch
from transformers import PreTrainedModel

from astra.config import ModelConfig
from astra.errors import ConfigError
from astra.models import ModelAdapter
from astra.models.bert import BertAdapter, build_bert
from astra.models.gpt2 import GPT2Adapter, build_gpt2
from astra.models.llama import LlamaAdapter, build_llama
from astra.models.vit import ViTAdapter, build_vit

__all__ = ["BUILDERS", "adapter_of"]

BUILDERS: Mapping[str, Callable[[ModelConfig], PreTrainedModel]] = {
    "vit": build_vit,
    "bert": build_bert,
    "gpt2": build_gpt2,
    "llama": build_llama,
}

_ADAPTERS: Mapping[str, Callable[..., ModelAdapter]] = {
    "vit": ViTAdapter,
    "bert": BertAdapter,
    "gpt2": GPT2Adapter,
    "llama": LlamaAdapter,
}


def adapter_of(model: PreTrainedModel, num_tokens: int | None) -> ModelAdapter:
    """Adapt a model by its type; see `models.adapt`."""
    kind = model.config.model_type
    if kind not in _ADAPTERS:
        known = ", ".join(_ADAPTERS)
        raise ConfigError([f"model: model_type must be one of {known}, got {kind!r}; use a model of these"])
    with torch.inference_mode(False), torch.enable_grad():  # the views that it takes are to pass gradients on
        return _ADAPTERS[kind](model) if kind == "vit" else _ADAPTERS[kind](model, num_tokens)
