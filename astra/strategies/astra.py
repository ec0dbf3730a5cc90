"""ASTRA: each rank keeps its slice of tokens, and peers see only vector-quantised codes of the attention input.

Source: ASTRA, arXiv 2505.19342 (Liu, Zhang, Ganesan, Guan): mixed-precision attention softmax(Q [K | K̂]ᵀ/√d) [V | V̂],
grouped codebooks, distributed class tokens. The paper leaves open whether quantisation precedes the norm; here U, the
norm's output, is quantised, so that K̂ and V̂ are affine in the codewords and come from tables. "Averaged after the last
layer" is read as: after the last block, before the final norm; all copies count the same.

    rank r, layer l:   u ──encode──► codes ──► peers that look at r's tokens: all, or the later ones if causal
                       u ──► q, k, v of own class copy and own tokens ──► attend over these (while codes are in flight)
                       peers' codes ──count, table──► k̂, v̂ ──rotate to their positions──► attend over these
                       both contexts ──merge by the sums of their scores──► the same as attention over all of them

`site: kv` (the paper's variant for Llama) quantises keys, before RoPE, and values instead of U. Both lie side by side
in one vector that is cut into G groups, so that a code costs the same number of bits at either site.

With `code_bits`, codes are those of coarser codebooks inside the trained ones, which may differ from layer to layer.
With `coding: entropy` a code takes as many bits as its probability says, by tables that lie beside the codebooks.

Traffic of one layer: from each rank (at most) T/N · G · log2 K bits to N − 1 peers (to the later ones if causal); after
the last, one class copy from every peer to rank 0, or the row that the head reads in a causal model. Class copies
travel like codes: with `transport: datagram` the mean is of those that came.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from astra.attention import merge_heads, positions_of
from astra.code_tables import load_tables
from astra.codebook import (
    CodebookSpec,
    GroupedCodebook,
    count_codes,
    read_codewords,
    translation,
)
from astra.coded_rows import CodedRows
from astra.config import AstraConfig
from astra.dealing import split_tokens
from astra.errors import ConfigError
from astra.exchange import open_exchange, plan_rows, plan_to_first
from astra.models import Block, ModelAdapter, ModelShape
from astra.nesting import sent_codebooks
from astra.partial_attention import KeyValues, attend_part, hide_absent, merge_parts
from astra.planning.coded_layer import coded_layer, table_width
from astra.planning.forecast import BYTES_OF_FP32
from astra.planning.schedule import Compute, Repeat, Schedule, Send, Step, Wait, answered, per_rank
from astra.planning.tables import expected_tables
from astra.planning.work import LayerWork, alone
from astra.remote_tables import KeyValueCodewords, RemoteKeyValue, remote_tables, table_budget
from astra.rows import CodeRows, LayeredCodeRows, RowCodec, Rows, ValueRows
from astra.slices import answer_rank, bring_answer, plan_answer
from astra.strategies.protocol import RankContext, Request
from astra.traffic import PlannedMessage
from astra.transport import Tag
from astra.transport_config import DatagramConfig, ReliableConfig

__all__ = ["AstraStrategy"]


class AstraStrategy:
    """Every rank runs every layer on its own content tokens and on its own copy of the class token."""

    def __init__(self, context: RankContext, config: AstraConfig):
        if context.codebook_folder is None:
            raise ConfigError(["astra: codebook_folder must be given, got None; run `astra fit` first"])
        self._config = config
        self._model = context.model
        self._collectives = context.collectives
        self._timeline = context.timeline
        self._keep = context.keep
        self._keep_output = context.keep_output
        self._ranges = context.ranges
        shape = context.model.shape
        width = config.quantised_width(shape.width, shape.kv_width)
        spec = CodebookSpec(shape.num_layers, width, config.num_groups, config.num_codewords)
        self._codebooks = sent_codebooks(read_codewords(context.codebook_folder, spec), config)
        self._exchange = open_exchange(
            config.transport,
            context.collectives,
            _code_rows(config, context.codebook_folder, spec, shape),
            [len(tokens) for tokens in context.ranges],
            causal=shape.causal,
            carry_over=self._translate,
        )
        self._class_copies = self._exchange.to_first(_class_rows(shape))
        self._translations = _translations(self._codebooks, config.transport)
        own, looked_at = context.ranges[context.collectives.rank], context.collectives.looked_at(shape.causal)
        self._own_positions = positions_of([own])
        self._remote_positions = positions_of(context.ranges[peer] for peer in looked_at)
        self._tables = self._make_tables(context.model, len(self._remote_positions))

    @torch.inference_mode()
    def forward(self, request: Request) -> Tensor | None:
        """Run all layers on [class copy, own content]; rank 0 brings the answer's row together and reads it off."""
        model, span = self._model, self._timeline.span
        with span("embed"):
            own = self._ranges[self._collectives.rank]
            content_BTD = model.embed_content(request.inputs, own, request.first_row)
            x_BTD = torch.cat((model.embed_class(len(content_BTD)), content_BTD), dim=1)
        for layer, block in enumerate(model.blocks):
            with span("encode", layer):
                u_BTD = block.attention_input(x_BTD)
                own_kv = block.key_value_unrotated(u_BTD) if self._config.site == "kv" else None
                codes_TV = self._encode(layer, u_BTD if own_kv is None else torch.cat([*map(merge_heads, own_kv)], -1))
            with span("send", layer):
                pending = self._exchange.start(Tag(request.index, layer, "codes"), codes_TV)
            with span("rest", layer):  # while the codes are in flight
                q_BHTd = block.query(u_BTD, self._own_positions)
                k_BHTd, v_BHTd = own_kv or block.key_value_unrotated(u_BTD)
                keys = [KeyValues(block.rotate(k_BHTd, self._own_positions), v_BHTd)]
            with span("attention", layer):
                seen = [attend_part(q_BHTd, keys[0], causal=model.shape.causal)]
            with span("wait", layer):
                rows = pending.wait()
            with span("remote", layer):
                keys += self._remote_keys(layer, block, rows, len(x_BTD))
            with span("attention", layer):
                self._keep(layer, *keys)
                seen += [attend_part(q_BHTd, remote) for remote in keys[1:]]
                context_BTD = merge_parts(seen)
            with span("rest", layer):
                x_BTD = block.finish(x_BTD, context_BTD)
        if self._keep_output:
            self._keep_output(own, x_BTD[:, model.shape.num_class_tokens :])
        answer_BD = self._bring_answer(request, x_BTD[:, model.shape.answer_token])
        if answer_BD is None:
            return None
        with span("head"):
            return model.head(answer_BD)

    @staticmethod
    def partition(shape: ModelShape, config: AstraConfig, weights: Sequence[float]) -> tuple[range, ...]:
        """Split the content tokens for equal work."""
        return split_tokens(shape, weights, config)

    @staticmethod
    def plan(
        shape: ModelShape, config: AstraConfig, ranges: Sequence[range], weights: Sequence[float]
    ) -> list[PlannedMessage]:
        """Send each rank's codes to whoever looks at its tokens in every layer, then what the answer is made from.

        Where codes are entropy-coded, their messages are as long as they can be, and say so.
        """
        content, groups = [len(tokens) for tokens in ranges], config.num_groups
        codes = [
            message
            for bits, layers in _runs(config, shape.num_layers)
            for message in plan_rows(
                config.transport, CodeRows(bits), content, groups, rounds=layers, causal=shape.causal
            )
        ]
        if config.coding == "entropy":
            codes = [replace(message, most_bytes=message.payload_bytes) for message in codes]
        if shape.causal:
            return codes + plan_answer(shape, answer_rank(shape, len(ranges)))
        return codes + plan_to_first(config.transport, _class_rows(shape), shape.width, len(ranges))

    def _make_tables(self, model: ModelAdapter, num_remote: int) -> Sequence[RemoteKeyValue]:
        """Return every layer's way from codes to keys and values."""
        if self._config.site == "kv":
            return [KeyValueCodewords(codebook, model.shape.num_kv_heads) for codebook in self._codebooks]
        tables, budget_bytes = self._config.tables, table_budget()
        return remote_tables(self._codebooks, model.blocks, num_remote, tables=tables, budget_bytes=budget_bytes)

    @staticmethod
    def schedule(shape: ModelShape, config: AstraConfig, ranges: Sequence[range], weights: Sequence[float]) -> Schedule:
        """Encode, project while codes are in flight, look up, and attend over the codes that there are."""
        content, width = [len(tokens) for tokens in ranges], config.quantised_width(shape.width, shape.kv_width)
        num_codewords = sum(1 << bits for bits in config.bits_by_layer(shape.num_layers))
        table_values = 2 * shape.kv_width * table_width(config) if config.site == "input" else 0
        table_bytes = BYTES_OF_FP32 * num_codewords / shape.num_layers * table_values
        tables = expected_tables(shape.num_layers, table_bytes) if table_bytes else 1.0
        layers = tuple(
            Repeat(count, coded_layer(shape, config, bits, content, tables=tables))
            for bits, count in _runs(config, shape.num_layers)
        )
        last = answered(shape, len(ranges)) if shape.causal else _averaged(shape, config, len(ranges))
        parts, quantiser = LayerWork(shape), num_codewords * (width + tables * table_values)
        steps = (per_rank(parts.embed, content), *layers, *last)
        return Schedule(steps, (float(parts.all_weights + quantiser),) * len(ranges))

    def _encode(self, layer: int, rows_BTE: Tensor) -> Tensor:
        """Quantise the content rows, for those that look at them; the class copy stays here.

        Returns:
            Codes [T, B · G]: all that is known of a token lies together, since it travels or is lost together.
        """
        batch, num_rows, _ = rows_BTE.shape
        num_tokens = num_rows - self._model.shape.num_class_tokens
        if not self._collectives.lookers(self._model.shape.causal):
            return torch.empty(num_tokens, batch * self._config.num_groups, dtype=torch.int64)
        content_RE = rows_BTE[:, self._model.shape.num_class_tokens :].flatten(0, 1)
        codes_RG = self._codebooks[layer].encode(content_RE)
        return codes_RG.view(batch, num_tokens, -1).transpose(0, 1).reshape(num_tokens, -1)

    def _remote_keys(self, layer: int, block: Block, rows: Rows, batch: int) -> list[KeyValues]:
        """Return the quantised keys and values of peers' tokens, or nothing where none came.

        With one group, tokens of one code have one key and one value: a key that stands for n of them adds log n to
        its logit, which is exact. Where positions turn keys, equal codes have unequal keys.
        """
        if not len(rows.rows_RV) or (rows.absent_R is not None and bool(rows.absent_R.all())):
            return []
        bias_S: Tensor | None
        if self._config.num_groups == 1 and batch == 1 and not block.turns_keys:
            codes_R = rows.rows_RV[:, 0] if rows.absent_R is None else rows.rows_RV[~rows.absent_R, 0]
            codes_U, bias_S = count_codes(codes_R)
            codes_BRG = codes_U.view(1, -1, 1)
        else:
            codes_BRG = rows.rows_RV.view(-1, batch, self._config.num_groups).transpose(0, 1)
            bias_S = hide_absent(None, rows.absent_R)
        k_BHRd, v_BHRd = self._tables[layer].remote_key_value(codes_BRG)
        if block.turns_keys:
            k_BHRd = block.rotate(k_BHRd, self._remote_positions)
        return [KeyValues(k_BHRd, v_BHRd, bias_S)]

    def _translate(self, layer: int, codes_RV: Tensor) -> Tensor:
        """Return for codes of the layer before those of this layer, whose codebook is another one."""
        codes_RG = codes_RV.view(-1, self._config.num_groups)
        return self._translations[layer].gather(0, codes_RG).view_as(codes_RV)

    def _bring_answer(self, request: Request, row_BD: Tensor) -> Tensor | None:
        """Return on rank 0 the mean of the class copies that came, or, if causal, the last token's row; else None."""
        rank, shape = self._collectives.rank, self._model.shape
        if shape.causal:
            owner = answer_rank(shape, self._collectives.world_size)
            with self._timeline.span("send" if rank == owner else "wait"):
                return bring_answer(self._collectives, Tag(request.index, shape.num_layers, "answer"), row_BD, owner)
        with self._timeline.span("send"):
            pending = self._class_copies.start(Tag(request.index, shape.num_layers, "class"), row_BD.reshape(1, -1))
        if rank != 0:
            return None
        with self._timeline.span("wait"):
            rows = pending.wait()
        there = rows.rows_RV if rows.absent_R is None else rows.rows_RV[~rows.absent_R]
        return torch.cat((row_BD[None], there.view(-1, *row_BD.shape))).mean(dim=0)


def _runs(config: AstraConfig, num_layers: int) -> list[tuple[int, int]]:
    """Return bits, and of how many layers in a row a code has so many."""
    return [(bits, len(list(layers))) for bits, layers in groupby(config.bits_by_layer(num_layers))]


def _code_rows(config: AstraConfig, folder: Path, spec: CodebookSpec, shape: ModelShape) -> RowCodec:
    """How codes travel."""
    if config.coding == "fixed":
        return LayeredCodeRows(config.bits_by_layer(shape.num_layers))
    coded = replace(spec, num_codewords=1 << config.bits)
    return CodedRows(config.bits, load_tables(folder, coded, shape.num_content_tokens))


def _averaged(shape: ModelShape, config: AstraConfig, world_size: int) -> tuple[Step, ...]:
    """Bring all class copies to rank 0, and read the answer off their mean."""
    copies = plan_to_first(config.transport, _class_rows(shape), shape.width, world_size)
    return Send(tuple(copies)), Wait(), Compute(alone(0, world_size, LayerWork(shape).head()))


def _class_rows(shape: ModelShape) -> ValueRows:
    """How a rank's class copy travels to rank 0."""
    return ValueRows("fp32", shape.width)


def _translations(codebooks: Sequence[GroupedCodebook], transport: ReliableConfig | DatagramConfig) -> list[Tensor]:
    """Return for each layer how codes of the layer before read in its codebook, if there can be stale ones."""
    if not isinstance(transport, DatagramConfig) or transport.on_missing != "stale":
        return []
    return [translation(before, after) for before, after in zip([codebooks[0], *codebooks], codebooks, strict=False)]
