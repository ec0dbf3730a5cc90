"""What computing costs before anybody says how fast a device is: counts by kind, for parts of a layer. Pure.

    rows of tokens ──LayerWork──► Work {"dense": operations, "attention": operations, …} ──Speed──► seconds

Operations are those that `flops` counts, which tests hold these formulas to. What multiplies nothing (norms,
activations) is in the price of a dense operation, as both grow with the rows.

    legend: D width, E keys and values of a token side by side
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

from astra.models import ModelShape

__all__ = ["ENCODE_KINDS", "FEW_ROWS", "KINDS", "NOTHING", "Kind", "LayerWork", "Work", "alone", "conversion"]

Kind = Literal[
    "dense",
    "spilled",
    "weights",
    "attention",
    "keys",
    "codes",
    "scores",
    "gathered",
    "calls",
    "encode fp32",
    "encode fp16",
    "encode int8",
    "encode int4",
    "decode fp32",
    "decode fp16",
    "decode int8",
    "decode int4",
    "messages",
    "bytes",
]
"""Operations of layers; those of them on rows too many for a core's cache, which take a little more; weights read for
them; operations of attention; values of keys and values that it reads; operations of a quantiser; scores of which it
takes the best; values looked up or copied; calls of torch; values of rows that become bytes or come from them; messages
and their bytes, sent or received."""

KINDS: tuple[Kind, ...] = get_args(Kind)
ENCODE_KINDS = frozenset(kind for kind in KINDS if kind in ("codes", "scores") or kind[:6] in ("encode", "decode"))
"""Turning tensors into bytes and back."""

FEW_ROWS = 256
"""Rows whose activations stay in a core's cache from one product of a layer to the next."""

_PRODUCT_CALLS, _ATTENTION_CALLS, _NORM_CALLS, _ENCODE_CALLS = 3, 8, 4, 4


@dataclass(frozen=True)
class Work:
    """Counts by kind; sums and multiples of them are work too."""

    counts: Mapping[Kind, float] = field(default_factory=dict)

    def __add__(self, other: "Work") -> "Work":
        total = dict(self.counts)
        for kind, count in other.counts.items():
            total[kind] = total.get(kind, 0.0) + count
        return Work(total)

    def __mul__(self, factor: float) -> "Work":
        return Work({kind: factor * count for kind, count in self.counts.items()})


NOTHING = Work()


def conversion(way: Literal["encode", "decode"], wire: str) -> Kind:
    """Return the kind of turning values into a wire format, or back."""
    return next(kind for kind in KINDS if kind == f"{way} {wire}")


def alone(rank: int, world_size: int, work: Work) -> tuple[Work, ...]:
    """Give the work to one rank, and none to the others."""
    return tuple(work if each == rank else NOTHING for each in range(world_size))


@dataclass(frozen=True)
class LayerWork:
    """Work of the parts of a model; `share` is the part of the heads or hidden units that a rank has."""

    shape: ModelShape

    @cached_property
    def all_weights(self) -> int:
        """Weights of the whole model: layers, the embedding of words, and the head."""
        return self.all_layer_weights + self.embedding_weights + self.head_weights

    @property
    def all_layer_weights(self) -> int:
        """Weights of all layers."""
        return self.shape.num_layers * self.shape.layer_weights

    @property
    def embedding_weights(self) -> int:
        """Weights that embed words; those that embed patches are too few to count."""
        return self.shape.width * self.shape.vocabulary

    @property
    def head_weights(self) -> int:
        """Weights that the answer is read with."""
        return self.shape.width * self.shape.num_outputs

    def sharded(self, shares: Sequence[float]) -> tuple[float, ...]:
        """Return the weights of ranks that share the layers: all of them embed, and rank 0 has the head."""
        own = [share * self.all_layer_weights + self.embedding_weights for share in shares]
        return (own[0] + self.head_weights, *own[1:])

    def embed(self, rows: int) -> Work:
        """Embed content: of patches, whose product is taken to be square; words are looked up."""
        if self.shape.vocabulary:
            return Work({"gathered": 2 * rows * self.shape.width, "calls": _PRODUCT_CALLS})
        return self._product(rows, self.shape.width**2)

    def norm(self, rows: int) -> Work:
        """Apply a norm or add a residual alone."""
        return Work({"gathered": 2 * rows * self.shape.width, "calls": _NORM_CALLS}) if rows else NOTHING

    def query(self, rows: int, share: float = 1.0) -> Work:
        """Norm, and project queries."""
        return self._product(rows, share * self.shape.query_weights)

    def key_value(self, rows: int, share: float = 1.0) -> Work:
        """Project keys and values."""
        return self._product(rows, share * self.shape.key_value_weights)

    def attend(self, queries: int, keys: int, share: float = 1.0) -> Work:
        """Attend over keys, which are first put in order."""
        if not queries or not keys:
            return NOTHING
        width = share * self.shape.num_heads * self.shape.head_width
        values = share * 2 * keys * self.shape.kv_width
        return Work({"attention": 4 * queries * keys * width, "keys": values, "calls": _ATTENTION_CALLS})

    def output(self, rows: int, share: float = 1.0) -> Work:
        """Project the context back to the width."""
        return self._product(rows, share * self.shape.query_weights)

    def mlp(self, rows: int, share: float = 1.0) -> Work:
        """Norm, and run hidden units."""
        return self._product(rows, share * self.shape.mlp_weights)

    def finish(self, rows: int) -> Work:
        """Do what comes after attention."""
        return self.output(rows) + self.mlp(rows)

    def layer(self, rows: int, keys: int) -> Work:
        """Run a whole layer on rows of which all keys are projected here."""
        return self.query(rows) + self.key_value(keys) + self.attend(rows, keys) + self.finish(rows)

    def head(self) -> Work:
        """Read the answer off one row."""
        return self._product(1, self.head_weights)

    def quantise(self, rows: int, width: int, num_groups: int, num_codewords: int) -> Work:
        """Find the codes of rows of this width."""
        if not rows:
            return NOTHING
        scores = rows * num_groups * num_codewords
        return Work(
            {"codes": 2 * rows * width * num_codewords, "scores": scores, "calls": (1 + num_groups) * _ENCODE_CALLS}
        )

    def look_up(self, rows: int, parts: float = 1) -> Work:
        """Take keys and values of rows from tables, as the sum of `parts` entries each."""
        return Work({"gathered": rows * (1 + parts) * 2 * self.shape.kv_width, "calls": _ATTENTION_CALLS})

    def encode(self, wire: str, rows: int, width: int | None = None) -> Work:
        """Turn rows into bytes."""
        return self._converted("encode", wire, rows, width)

    def decode(self, wire: str, rows: int, width: int | None = None) -> Work:
        """Turn bytes into rows."""
        return self._converted("decode", wire, rows, width)

    def _product(self, rows: int, weights: float) -> Work:
        if not rows or not weights:
            return NOTHING
        spilled = 2.0 * max(0, rows - FEW_ROWS) * weights
        return Work({"dense": 2 * rows * weights, "spilled": spilled, "weights": weights, "calls": _PRODUCT_CALLS})

    def _converted(self, way: Literal["encode", "decode"], wire: str, rows: int, width: int | None) -> Work:
        values = rows * (self.shape.width if width is None else width)
        return Work({conversion(way, wire): values, "calls": _ENCODE_CALLS}) if values else NOTHING
