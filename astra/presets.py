"""The sizes of models: what `family` and `size` in a config stand for. Pure, and free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["PRESETS", "Family", "Preset", "Size", "sizes_of"]

Family = Literal["vit", "bert", "gpt2", "llama"]
Size = Literal["tiny", "digits", "mini", "cifar", "small", "minilm", "base", "medium", "llama-3-8b"]


@dataclass(frozen=True)
class Preset:
    """The sizes that fix an architecture within its family."""

    width: int
    num_heads: int
    num_kv_heads: int
    num_layers: int
    mlp_width: int
    patch_size: int = 0
    """Pixels per side of the square patch that becomes one token; 0 for text."""
    vocabulary: int = 0
    """Different token ids; text only."""
    positions: int | None = None
    """Rows of a learned position embedding, which bounds the length of a text; None for images and RoPE."""
    runnable: bool = True
    """False for shapes that are only planned with: no weights of that size are ever made here."""

    @property
    def kv_width(self) -> int:
        """Width of one token's keys, and of its values."""
        return self.num_kv_heads * self.width // self.num_heads


def _vit(width: int, num_heads: int, num_layers: int, patch_size: int = 16) -> Preset:
    return Preset(width, num_heads, num_heads, num_layers, 4 * width, patch_size=patch_size)


def _bert(width: int, num_layers: int, vocabulary: int = 30522) -> Preset:
    heads = max(width // 64, 4)
    return Preset(width, heads, heads, num_layers, 4 * width, vocabulary=vocabulary, positions=512)


def _gpt2(width: int, num_layers: int, vocabulary: int = 50257, positions: int = 1024) -> Preset:
    heads = max(width // 64, 4)
    return Preset(width, heads, heads, num_layers, 4 * width, vocabulary=vocabulary, positions=positions)


PRESETS: Mapping[str, Mapping[str, Preset]] = {
    "vit": {
        "tiny": _vit(64, 4, 4),
        "digits": _vit(48, 4, 4, patch_size=2),
        "mini": _vit(128, 4, 4, patch_size=4),
        "cifar": _vit(384, 6, 7, patch_size=4),
        "small": _vit(384, 6, 12),
        "base": _vit(768, 12, 12),
    },
    "bert": {
        "tiny": _bert(64, 4, 512),
        "small": _bert(512, 4),
        "minilm": Preset(384, 12, 12, 6, 1536, vocabulary=30522, positions=512),
        "medium": _bert(512, 8),
        "base": _bert(768, 12),
    },
    "gpt2": {
        "tiny": _gpt2(64, 4, 512),
        "mini": _gpt2(128, 4, positions=256),
        "small": _gpt2(768, 12),
        "medium": _gpt2(1024, 24),
    },
    "llama": {
        "tiny": Preset(64, 4, 2, 4, 160, vocabulary=512),
        "small": Preset(576, 9, 3, 30, 1536, vocabulary=49152),
        "medium": Preset(960, 15, 5, 32, 2560, vocabulary=49152),
        "llama-3-8b": Preset(4096, 32, 8, 32, 14336, vocabulary=128256, runnable=False),
    },
}
"""`tiny` is for tests; `digits`, `mini` and `cifar` are to be trained from nothing: on 8 x 8 scans, by two CPU cores,
and on 32 x 32 photographs by a GPU. The others have published shapes: ViT-S/16 and ViT-B/16; BERT small, medium and
base, MiniLM of 6 layers; GPT-2 of 124 and 355 million parameters; SmolLM of 135 and 360 million (Llama's architecture
with grouped-query attention)."""


def sizes_of(family: str, *, runnable_only: bool = False) -> list[str]:
    """Return the names of a family's presets."""
    return [size for size, preset in PRESETS[family].items() if preset.runnable or not runnable_only]
