"""N devices in one process: what a distributed run computes, vectorised over devices and differentiable.

    legend: B batch, T tokens, D width, N devices, E numbers that are quantised, H heads, d head width,
            R rows (tokens, then class copies), S rows and means

ASTRA: every content token has one owner; one attention per layer over [own rows R | quantised tokens T].

                     tokens (exact)     class copies     tokens (quantised)
        token  i     same device        same device      other device           causal: and not later than i
        copy   n     of device n        copy n           of another device

Each row of x is kept once, by its owner, so nothing is computed twice and nothing depends on N but the mask and the
class copies. Owners may be any: at random in training, so that one set of codebooks serves every split (ASTRA, arXiv
2505.19342), contiguous in a real run, to which this is equal (`strategies.astra`). PRISM: the same over [rows | means].

Everything is made on the device of the model's embeddings, and nothing is copied from there to the CPU, but for PRISM's
narrow wires.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor

from astra.attention import attend, merge_heads, split_heads
from astra.models import Block, ModelAdapter, ModelShape
from astra.segments import count_segments, cut_segments
from astra.slices import rows_per_rank
from astra.strategy_config import PrismConfig, Site
from astra.training.quantiser_config import ClassTokens
from astra.wire import Wire, decode, encode

__all__ = [
    "Emulated",
    "Quantise",
    "answer_rows",
    "emulate_astra",
    "emulate_prism",
    "emulate_single",
    "owners_of",
]

Quantise = Callable[[int, Tensor], Tensor]
"""Takes a layer's number and u_BTE; returns û_BTE, with gradient."""


@dataclass(frozen=True)
class Emulated:
    """The rows after the last block, before the final norm."""

    content_BTD: Tensor
    class_BND: Tensor
    """N copies of the class token, or 1 where there are no copies; no rows in a causal model."""


def emulate_single(model: ModelAdapter, inputs: Tensor) -> Emulated:
    """Run the original model on one device."""
    x_BTD, num_class = _embed(model, inputs)
    for block in model.blocks:
        u_BTD = block.attention_input(x_BTD)
        k_BHTd, v_BHTd = block.key_value(u_BTD)
        x_BTD = block.finish(x_BTD, attend(block.query(u_BTD), k_BHTd, v_BHTd, causal=model.shape.causal))
    return Emulated(x_BTD[:, num_class:], x_BTD[:, :num_class])


def emulate_astra(
    model: ModelAdapter,
    inputs: Tensor,
    owners_T: Tensor,
    num_devices: int,
    *,
    quantise: Quantise,
    site: Site = "input",
    class_tokens: ClassTokens = "distributed",
) -> Emulated:
    """Run ASTRA on `num_devices` devices.

    Args:
        model: On any device; gradients reach whatever parameters ask for them.
        inputs: Pixels or token ids of a batch.
        owners_T: Device of each content token, from 0 to `num_devices` - 1, in any order; on the model's device.
        num_devices: Also the number of copies of the class token.
        quantise: Called once per layer, in order, with what `site` says of all tokens that have an owner.
        site: As in the strategy.
        class_tokens: `single` is the paper's ablation: the class token is device 0's alone, and the others see it
            quantised; the strategy has only `distributed`. No effect on a causal model, which has no class token.
    """
    x_BRD, num_class = _embed(model, inputs)
    owners_R, num_copies = owners_T, 0
    if num_class and class_tokens == "single":
        owners_R = torch.cat((owners_T.new_zeros(num_class), owners_T))
    elif num_class:
        num_copies = num_devices
        x_BRD = torch.cat((x_BRD[:, num_class:], x_BRD[:, :num_class].expand(-1, num_copies, -1)), dim=1)
        owners_R = torch.cat((owners_T, torch.arange(num_copies, device=owners_T.device)))
    num_tokens = x_BRD.shape[1] - num_copies
    visible_RS = _visible(owners_R, num_tokens, causal=model.shape.causal)
    positions_S = torch.cat(
        [torch.arange(count, device=x_BRD.device) for count in (num_tokens, num_copies, num_tokens)]
    )
    for layer, block in enumerate(model.blocks):
        u_BRD = block.attention_input(x_BRD)
        k_BHSd, v_BHSd = _exact_and_quantised(block, u_BRD, num_tokens, site, partial(quantise, layer))
        q_BHRd = block.query(u_BRD, positions_S[: len(owners_R)])
        x_BRD = block.finish(x_BRD, _attend(q_BHRd, block.rotate(k_BHSd, positions_S), v_BHSd, visible_RS))
    if num_copies:
        return Emulated(x_BRD[:, :num_tokens], x_BRD[:, num_tokens:])
    return Emulated(x_BRD[:, num_class:], x_BRD[:, :num_class])


def emulate_prism(model: ModelAdapter, inputs: Tensor, ranges: Sequence[range], config: PrismConfig) -> Emulated:
    """Run PRISM with one device per range; the class token is the first row of device 0.

    Narrow wires round the means as a real run does, on the CPU; the gradient passes as if they had not been rounded.

    Raises:
        ValueError: A range has fewer tokens than it is to have segments.
    """
    x_BRD, num_class = _embed(model, inputs)
    plan = _plan_segments(model.shape, ranges, config).to(x_BRD.device)
    for block in model.blocks:
        means_BMD = _through_wire(plan.averages_MR.to(x_BRD.dtype) @ x_BRD, config.wire)
        u_BSD = block.attention_input(torch.cat((x_BRD, means_BMD), dim=1))
        k_BHSd, v_BHSd = block.key_value(u_BSD, plan.positions_S)
        num_rows = x_BRD.shape[1]
        q_BHRd = block.query(u_BSD[:, :num_rows], plan.positions_S[:num_rows])
        x_BRD = block.finish(x_BRD, _attend(q_BHRd, k_BHSd, v_BHSd, plan.bias_RS.to(q_BHRd.dtype)))
    return Emulated(x_BRD[:, num_class:], x_BRD[:, :num_class])


def answer_rows(emulated: Emulated, shape: ModelShape) -> Tensor:
    """Return what `head` reads, [B, D]: the mean of the class copies, or the last token if causal."""
    return emulated.content_BTD[:, -1] if shape.causal else emulated.class_BND.mean(dim=1)


def owners_of(ranges: Sequence[range]) -> Tensor:
    """Return owners_T of a split into contiguous slices, as a strategy's `partition` gives it."""
    lengths = torch.tensor([len(tokens) for tokens in ranges])
    return torch.repeat_interleave(torch.arange(len(ranges)), lengths)


def _embed(model: ModelAdapter, inputs: Tensor) -> tuple[Tensor, int]:
    """Return the rows [class tokens | content] that enter layer 0, and how many class tokens there are."""
    shape = model.shape
    content_BTD = model.embed_content(inputs, range(shape.num_content_tokens))
    if not shape.num_class_tokens:
        return content_BTD, 0
    return torch.cat((model.embed_class(len(content_BTD)), content_BTD), dim=1), shape.num_class_tokens


def _visible(owners_R: Tensor, num_tokens: int, *, causal: bool) -> Tensor:
    """Return [R, R + T]: which rows, and which tokens in quantised form, each row sees; each token in one form."""
    same_RR = owners_R[:, None] == owners_R
    visible_RS = torch.cat((same_RR, ~same_RR[:, :num_tokens]), dim=1)
    if not causal:
        return visible_RS
    not_later_TT = torch.ones_like(same_RR).tril()
    return visible_RS & torch.cat((not_later_TT, not_later_TT), dim=1)


def _exact_and_quantised(
    block: Block, u_BRD: Tensor, num_tokens: int, site: Site, quantise: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return keys, before positions, and values of [all rows | the tokens among them, quantised]."""
    if site == "input":
        return block.key_value_unrotated(torch.cat((u_BRD, quantise(u_BRD[:, :num_tokens])), dim=1))
    k_BHRd, v_BHRd = block.key_value_unrotated(u_BRD)
    both_BTE = torch.cat([merge_heads(part[:, :, :num_tokens]) for part in (k_BHRd, v_BHRd)], dim=-1)
    quantised_k, quantised_v = [split_heads(part, k_BHRd.shape[1]) for part in quantise(both_BTE).chunk(2, dim=-1)]
    return torch.cat((k_BHRd, quantised_k), dim=2), torch.cat((v_BHRd, quantised_v), dim=2)


def _attend(q_BHRd: Tensor, k_BHSd: Tensor, v_BHSd: Tensor, mask_RS: Tensor) -> Tensor:
    """Attend to the keys that each row may see; a mask that is not of truth values is added to the logits."""
    grouped = q_BHRd.shape[1] != k_BHSd.shape[1]
    return merge_heads(F.scaled_dot_product_attention(q_BHRd, k_BHSd, v_BHSd, attn_mask=mask_RS, enable_gqa=grouped))


@dataclass(frozen=True)
class _SegmentPlan:
    """How all devices' rows are averaged, and who sees which mean; M means of all devices."""

    averages_MR: Tensor
    """A mean is a row of this times x."""
    bias_RS: Tensor
    """Added to the logits of [rows | means]: 0, log s for a mean of s rows, or minus infinity."""
    positions_S: Tensor

    def to(self, device: torch.device) -> "_SegmentPlan":
        return _SegmentPlan(self.averages_MR.to(device), self.bias_RS.to(device), self.positions_S.to(device))


def _plan_segments(shape: ModelShape, ranges: Sequence[range], config: PrismConfig) -> _SegmentPlan:
    """Cut every device's rows as the strategy does."""
    counts = rows_per_rank(shape, ranges)
    cuts = [cut_segments(rows, count_segments(rows, config.num_segments, config.compression_ratio)) for rows in counts]
    devices = torch.arange(len(ranges))
    owners_R = torch.repeat_interleave(devices, torch.tensor(counts))
    owners_M = torch.repeat_interleave(devices, torch.tensor([len(segments) for segments in cuts]))
    lengths_M = torch.tensor([len(segment) for segments in cuts for segment in segments])
    means = torch.arange(len(lengths_M))
    segment_of_R = torch.repeat_interleave(means, lengths_M)
    averages_MR = (means[:, None] == segment_of_R) / lengths_M[:, None].float()
    exact_RR = owners_R[:, None] == owners_R
    mean_RM = owners_R[:, None] > owners_M if shape.causal else owners_R[:, None] != owners_M
    if shape.causal:
        exact_RR = exact_RR.tril()
    bias_RS = torch.cat((torch.zeros_like(exact_RR, dtype=torch.float32), lengths_M.log().expand(len(owners_R), -1)), 1)
    bias_RS = bias_RS.masked_fill(~torch.cat((exact_RR, mean_RM), dim=1), -torch.inf)
    first_M = lengths_M.cumsum(0) - lengths_M
    positions_S = torch.cat((torch.arange(len(owners_R)), first_M + (lengths_M - 1) // 2))
    return _SegmentPlan(averages_MR, bias_RS, positions_S)


def _through_wire(means_BMD: Tensor, wire: Wire) -> Tensor:
    """Return the means as they arrive, with the gradient of the identity."""
    if wire == "fp32":
        return means_BMD
    rows_RD = means_BMD.flatten(0, 1)
    arrived_RD = decode(encode(rows_RD, wire), wire, *rows_RD.shape).to(means_BMD)
    return arrived_RD.view_as(means_BMD) + (means_BMD - means_BMD.detach())
