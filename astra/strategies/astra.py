"""ASTRA: each rank keeps its slice of tokens, and peers see only vector-quantised codes of the attention input.

Source: ASTRA, arXiv 2505.19342 (Liu, Zhang, Ganesan, Guan): mixed-precision attention softmax(Q [K | K̂]ᵀ/√d) [V | V̂],
grouped codebooks, distributed class tokens. The paper leaves open whether quantisation precedes the norm; here U, the
norm's output, is quantised, so that K̂ and V̂ are affine in the codewords and come from tables. "Averaged after the last
layer" is read as: after the last block, before the final norm; all copies count the same.

    rank r, layer l:   u ──encode──► codes ──► peers
                       u ──► q, k, v of own tokens (while codes are in flight)
                       peers' codes ──table──► k̂, v̂ ──► attend over [own class, own exact | remote quantised]

Traffic of one layer: from each rank T/N · G · log2 K bits to N − 1 peers; after the last, one class token to rank 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from astra.attention import attend, prepend_remote
from astra.codebook import CodebookSpec, KeyValueTable, load_codebooks
from astra.config import AstraConfig
from astra.errors import ConfigError
from astra.models import ModelShape
from astra.partition import split
from astra.strategies.protocol import RankContext, Request
from astra.traffic import PlannedMessage, all_to_all
from astra.transport import Tag
from astra.wire import decode, encode, encoded_size, pack_codes, packed_size, unpack_codes

__all__ = ["AstraStrategy"]


class AstraStrategy:
    """Every rank runs every layer on its own content tokens and on its own copy of the class token."""

    def __init__(self, context: RankContext, config: AstraConfig):
        if context.codebook_folder is None:
            raise ConfigError(["astra: codebook_folder must be given, got None; run `astra fit` first"])
        self._model = context.model
        self._collectives = context.collectives
        self._timeline = context.timeline
        self._ranges = context.ranges
        self._bits = _bits(config)
        shape = context.model.shape
        spec = CodebookSpec(shape.num_layers, shape.width, config.num_groups, config.num_codewords)
        self._num_groups = config.num_groups
        self._codebooks = load_codebooks(context.codebook_folder, spec)
        self._tables = [
            KeyValueTable(codebook, block)
            for codebook, block in zip(self._codebooks, context.model.blocks, strict=True)
        ]

    @torch.inference_mode()
    def forward(self, request: Request) -> Tensor | None:
        """Run all layers on [class copy, own content]; rank 0 averages the class copies and reads off the answer."""
        model, span = self._model, self._timeline.span
        with span("embed"):
            own = self._ranges[self._collectives.rank]
            content_BTD = model.embed_content(request.inputs, own, request.first_row)
            x_BTD = torch.cat((model.embed_class(len(content_BTD)), content_BTD), dim=1)
        for layer, block in enumerate(model.blocks):
            with span("encode", layer):
                u_BTD = block.attention_input(x_BTD)
                payload = self._encode(layer, u_BTD)
            with span("send", layer):
                pending = self._collectives.start_all_gather(Tag(request.index, layer, "codes"), payload)
            with span("rest", layer):  # while the codes are in flight
                q_BHTd, (k_BHTd, v_BHTd) = block.query(u_BTD), block.key_value(u_BTD)
            with span("wait", layer):
                payloads = pending.wait()
            with span("attention", layer):
                if payloads:
                    codes_BRG = self._unpack(payloads, len(x_BTD))
                    remote_k, remote_v = self._tables[layer].remote_key_value(codes_BRG)
                    k_BHTd, v_BHTd = prepend_remote(remote_k, k_BHTd), prepend_remote(remote_v, v_BHTd)
                context_BTD = attend(q_BHTd, k_BHTd, v_BHTd)
            with span("rest", layer):
                x_BTD = block.finish(x_BTD, context_BTD)
        class_BD = self._average_class(request, x_BTD[:, 0])
        if class_BD is None:
            return None
        with span("head"):
            return model.head(class_BD)

    @staticmethod
    def partition(shape: ModelShape, weights: Sequence[float]) -> tuple[range, ...]:
        """Split the content tokens by weight."""
        return split(shape.num_content_tokens, weights)

    @staticmethod
    def plan(
        shape: ModelShape, config: AstraConfig, ranges: Sequence[range], weights: Sequence[float]
    ) -> list[PlannedMessage]:
        """Send each rank's codes to every peer in every layer, then each peer's class copy to rank 0."""
        sizes = [packed_size(len(tokens) * config.num_groups, _bits(config)) for tokens in ranges]
        class_bytes = encoded_size("fp32", shape.num_class_tokens, shape.width)
        copies = [PlannedMessage(rank, 0, class_bytes) for rank in range(1, len(ranges))]
        return all_to_all(sizes, count=shape.num_layers) + copies

    def _encode(self, layer: int, u_BTD: Tensor) -> bytes:
        """Quantise the content rows and pack their codes; the class copy stays here."""
        if not self._collectives.peers:
            return b""
        return pack_codes(self._codebooks[layer].encode(u_BTD[:, 1:].flatten(0, 1)), self._bits)

    def _unpack(self, payloads: dict[int, memoryview], batch: int) -> Tensor:
        """Return the peers' codes_BRG, in order of rank."""
        codes = [
            unpack_codes(payload, self._bits, batch * len(self._ranges[peer]) * self._num_groups)
            for peer, payload in payloads.items()
        ]
        return torch.cat([part.view(batch, -1, self._num_groups) for part in codes], dim=1)

    def _average_class(self, request: Request, class_BD: Tensor) -> Tensor | None:
        """Bring the class copies together; return their mean on rank 0 and None elsewhere."""
        tag = Tag(request.index, self._model.shape.num_layers, "class")
        with self._timeline.span("wait" if self._collectives.rank == 0 else "send"):
            payloads = self._collectives.gather(tag, encode(class_BD, "fp32"))
        if payloads is None:
            return None
        copies = [decode(payload, "fp32", *class_BD.shape) for payload in payloads.values()]
        return torch.stack([class_BD, *copies]).mean(dim=0)


def _bits(config: AstraConfig) -> int:
    """Return the bits of one code."""
    return config.num_codewords.bit_length() - 1
