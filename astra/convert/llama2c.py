"""llama2.c's files to a Hugging Face Llama: weights of version 0; `llama2c_tokenizer` reads the rest.

    IN.bin       7 int32: width, hidden, layers, heads, kv heads, vocabulary (negative: own classifier), positions
                 float32 tensors, all layers of a kind together, in the order of `_tensor_shapes`
    legend: L layers, D width, E keys or values, h hidden units, V vocabulary, P positions, d head width

llama2.c turns the neighbours (2i, 2i + 1) of a head together, Hugging Face the halves (i, i + d/2): the rows of query
and key weights are put in that order, which leaves every product of a query and a key as it was.

Source: file formats of Karpathy's llama2.c (export.py, version 0). Its norms add 1e-5.
"""

import struct
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from astra.convert.llama2c_tokenizer import read_bytes, read_tokens, tokenizer_json
from astra.errors import ConfigError
from astra.models import save_checkpoint
from astra.presets import Preset

__all__ = ["Header", "convert_llama2c", "read_weights"]

Array = NDArray[np.float32]

_HEADER = struct.Struct("<7i")
_MAGIC = 0x616B3432
"""How files of later versions begin."""
_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Header:
    """The sizes that a file begins with, in its order."""

    width: int
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocabulary: int
    positions: int

    @property
    def preset(self) -> Preset:
        """The sizes under this project's names."""
        return Preset(
            self.width, self.num_heads, self.num_kv_heads, self.num_layers, self.hidden, vocabulary=abs(self.vocabulary)
        )


def convert_llama2c(weights: Path, tokenizer: Path, folder: Path) -> None:
    """Write the model in `weights` and `tokenizer` to `folder`: config.json, model.safetensors and tokenizer.json.

    Raises:
        ConfigError: A file cannot be read, is of another format, is cut short or too long, or the two do not go
            together; or the folder cannot be written.
    """
    header, tensors = read_weights(weights)
    tokens = read_tokens(tokenizer, abs(header.vocabulary))
    model = _model(header, tensors)
    try:
        save_checkpoint(folder, model, tokenizer=tokenizer_json(tokens))
    except OSError as error:
        raise ConfigError([f"convert: --out must be a folder to write to, got {error}; choose another"]) from error


def read_weights(path: Path) -> tuple[Header, dict[str, Array]]:
    """Read a model file; the tensors have the names and shapes of `_tensor_shapes`.

    Raises:
        ConfigError: See `convert_llama2c`.
    """
    data = read_bytes(path)
    if len(data) < _HEADER.size:
        raise ConfigError([f"{path}: file must begin with 7 sizes of 4 bytes, got {len(data)} bytes; copy it again"])
    numbers = _HEADER.unpack_from(data)
    if numbers[0] == _MAGIC:
        raise ConfigError([f"{path}: file must be of version 0, got version {numbers[1]}; export it with --version 0"])
    header = Header(*numbers)
    if not _is_sound(header):
        shown = ", ".join(map(str, numbers))
        raise ConfigError([f"{path}: file must begin with the sizes of a Llama, got {shown}; give a llama2.c model"])
    shapes = _tensor_shapes(header)
    wanted = _HEADER.size + 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if len(data) != wanted:
        raise ConfigError([f"{path}: file must be {wanted} bytes for its sizes, got {len(data)}; copy it again"])
    tensors, offset = {}, _HEADER.size
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        tensors[name] = np.frombuffer(data, "<f4", count, offset).reshape(shape)
        offset += 4 * count
    return header, tensors


def _is_sound(header: Header) -> bool:
    """Say whether the sizes are those of some Llama."""
    if min(astuple(header)[:5]) < 1 or header.vocabulary == 0 or header.positions < 1:
        return False
    head_width, rest = divmod(header.width, header.num_heads)
    return rest == 0 and head_width % 2 == 0 and header.num_heads % header.num_kv_heads == 0


def _tensor_shapes(header: Header) -> dict[str, tuple[int, ...]]:
    """Return the tensors in the order of the file; the angles of RoPE are written too, and follow from the sizes."""
    layers, width, hidden = header.num_layers, header.width, header.hidden
    kv_width = header.preset.kv_width
    angles = (header.positions, width // header.num_heads // 2)
    vocabulary = (abs(header.vocabulary), width)
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens": vocabulary,
        "input_layernorm": (layers, width),
        "q_proj": (layers, width, width),
        "k_proj": (layers, kv_width, width),
        "v_proj": (layers, kv_width, width),
        "o_proj": (layers, width, width),
        "post_attention_layernorm": (layers, width),
        "gate_proj": (layers, hidden, width),
        "down_proj": (layers, width, hidden),
        "up_proj": (layers, hidden, width),
        "norm": (width,),
        "cosines": angles,
        "sines": angles,
    }
    return shapes if header.vocabulary > 0 else shapes | {"lm_head": vocabulary}


def _model(header: Header, tensors: dict[str, Array]) -> Any:
    """Put the tensors into a Hugging Face Llama."""
    from transformers import LlamaForCausalLM  # only needed here, and slow to import

    from astra.models.llama import llama_config

    config = llama_config(
        header.preset,
        header.positions,
        rms_norm_eps=_NORM_EPS,
        tie_word_embeddings="lm_head" not in tensors,
        architectures=["LlamaForCausalLM"],
    )
    model = LlamaForCausalLM(config)
    state = {
        "model.embed_tokens.weight": tensors["embed_tokens"],
        "model.norm.weight": tensors["norm"],
        "lm_head.weight": tensors.get("lm_head", tensors["embed_tokens"]),
    }
    for layer in range(header.num_layers):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weight = tensors[name][layer]
            turned = name in ("q_proj", "k_proj")
            state[f"model.layers.{layer}.self_attn.{name}.weight"] = _halved(weight, header) if turned else weight
        for name in ("gate_proj", "up_proj", "down_proj"):
            state[f"model.layers.{layer}.mlp.{name}.weight"] = tensors[name][layer]
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"model.layers.{layer}.{name}.weight"] = tensors[name][layer]
    model.load_state_dict({name: torch.tensor(np.ascontiguousarray(each)) for name, each in state.items()})
    return model


def _halved(weight_ED: Array, header: Header) -> Array:
    """Move the first neighbours of each head's pairs to its first half, and the second to its second."""
    head_width = header.width // header.num_heads
    pairs_HaxD = weight_ED.reshape(-1, head_width // 2, 2, header.width)
    return pairs_HaxD.transpose(0, 2, 1, 3).reshape(weight_ED.shape)
