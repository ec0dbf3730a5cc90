"""A layer's grouped codebook while it is trained: nearest codewords forward, the identity backward.

    u_BTE ──► codes ──► û_BTE ──(training: + λξ)──► to attention                  gradient: ∂û/∂u = 1
               │
               └─ training: counts, sums ──moving averages──► codewords; unused ones become tokens of the batch

    legend: B batch, T tokens, E numbers of a token, R rows (all tokens of a batch), G groups, K codewords, d = E / G

In evaluation mode it is what `GroupedCodebook` is: same codes, same û. State is in buffers, in fp32; nothing here has a
gradient of its own but the commitment to the codewords. Every random number comes from the generator that is handed in.

Source: van den Oord et al., arXiv 1711.00937, section 3 and appendix A.1; noise: `noise`. Ours: what counts as dead,
and that a revived codeword starts with the average count.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from torch import Tensor, nn

from astra.codebook import GroupedCodebook
from astra.training.noise import ResidualStatistics
from astra.training.quantiser_config import QuantiserConfig

__all__ = ["LayerQuantiser", "QuantiserConfig", "nearest_codes"]

CPU_SCORES_AT_ONCE = 2**19
"""Scores that are alive at once: 2 MB stay in the cache. 8,192 rows of 128 numbers, 1,024 codewords, one thread: 25 ms
for one group and 137 for 32, which take 220 one group at a time."""

GPU_SCORES_AT_ONCE = 2**26

LEAST_COUNT = 1e-12
"""Below this, sum ÷ count is noise; only a codeword that is never revived gets there."""


class LayerQuantiser(nn.Module):
    """The codebook of one layer, which follows what it quantises."""

    codewords_GKd: Tensor
    counts_GK: Tensor
    sums_GKd: Tensor

    def __init__(self, codewords_GKd: Tensor, config: QuantiserConfig):
        """Start from these codewords, each as if it had been used once."""
        super().__init__()
        self._config = config
        start_GKd = codewords_GKd.detach().float().clone()
        self.register_buffer("codewords_GKd", start_GKd)
        self.register_buffer("counts_GK", torch.ones_like(start_GKd[..., 0]))
        self.register_buffer("sums_GKd", start_GKd.clone())
        num_groups, _, group_width = start_GKd.shape
        self.residuals = ResidualStatistics(num_groups * group_width, config.covariance, config.ema_decay)
        self._commitment: Tensor | None = None

    @classmethod
    def from_codebook(cls, codebook: GroupedCodebook, config: QuantiserConfig) -> Self:
        """Start from a k-means fit."""
        return cls(codebook.codewords_GKd, config)

    def to_codebook(self) -> GroupedCodebook:
        """Return the codebook as it is now, on the CPU."""
        return GroupedCodebook(self.codewords_GKd.detach().cpu().clone())

    @property
    def commitment(self) -> Tensor:
        """Mean of (u - û)² over all numbers of the last forward, a scalar with gradient to u; 0 before the first.

        The paper does not say whether it sums or averages over the width; it is averaged, as is usual.
        """
        return self.codewords_GKd.new_zeros(()) if self._commitment is None else self._commitment

    def forward(self, u_BTE: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return û_BTE; in training mode, with noise, and learn from u.

        Args:
            u_BTE: Any floating type; û has the same.
            generator: Decides revivals and noise; training needs it. One of another device only seeds one of u's.
        """
        width = u_BTE.shape[-1]
        with _fp32_on(u_BTE.device.type):
            u_RE = u_BTE.reshape(-1, width).float()
            rows_RE = u_RE.detach()
            codes_RG = nearest_codes(rows_RE, self.codewords_GKd)
            quantised_RE = self._decode(codes_RG)
            self._commitment = F.mse_loss(u_RE, quantised_RE)
            if self.training:
                assert generator is not None, "training draws random numbers, and must be repeatable"
                quantised_RE = self._learn(rows_RE, quantised_RE, codes_RG, _local(generator, rows_RE.device))
            return (quantised_RE + (u_RE - rows_RE)).view_as(u_BTE).to(u_BTE.dtype)

    def _decode(self, codes_RG: Tensor) -> Tensor:
        """Return the codewords side by side, [R, E]; they are no view of the buffer."""
        num_groups, num_codewords, group_width = self.codewords_GKd.shape
        entries_RG = codes_RG + num_codewords * torch.arange(num_groups, device=codes_RG.device)
        return F.embedding(entries_RG, self.codewords_GKd.view(-1, group_width)).flatten(1)

    @torch.no_grad()
    def _learn(self, u_RE: Tensor, quantised_RE: Tensor, codes_RG: Tensor, generator: torch.Generator) -> Tensor:
        """Update averages and codewords, and return û with noise."""
        self._average(u_RE, codes_RG)
        if self._config.revive_below > 0:
            self._revive(u_RE, generator)
        if self._config.noise == 0:
            return quantised_RE
        self.residuals.update(u_RE - quantised_RE)
        noise_RE = self.residuals.sample(len(u_RE), generator)
        return quantised_RE.add(noise_RE, alpha=self._config.noise)

    def _average(self, u_RE: Tensor, codes_RG: Tensor) -> None:
        """Move counts and sums towards those of this batch, and codewords to their ratio."""
        num_groups, num_codewords, group_width = self.codewords_GKd.shape
        entries = (codes_RG + num_codewords * torch.arange(num_groups, device=codes_RG.device)).flatten()
        subvectors = u_RE.view(-1, group_width)
        counts = torch.zeros_like(self.counts_GK).view(-1).index_add_(0, entries, torch.ones_like(subvectors[:, 0]))
        sums = torch.zeros_like(self.sums_GKd).view(-1, group_width).index_add_(0, entries, subvectors)
        step = 1 - self._config.ema_decay
        self.counts_GK.lerp_(counts.view_as(self.counts_GK), step)
        self.sums_GKd.lerp_(sums.view_as(self.sums_GKd), step)
        counts_GK1 = self.counts_GK.unsqueeze(-1)
        ratio_GKd = self.sums_GKd / counts_GK1.clamp_min(LEAST_COUNT)
        self.codewords_GKd.copy_(torch.where(counts_GK1 > LEAST_COUNT, ratio_GKd, self.codewords_GKd))

    def _revive(self, u_RE: Tensor, generator: torch.Generator) -> None:
        """Put tokens of this batch, drawn at random, in the place of codewords that are hardly used."""
        num_groups, _, group_width = self.codewords_GKd.shape
        mean_G1 = self.counts_GK.mean(dim=1, keepdim=True)
        dead_GK = self.counts_GK < self._config.revive_below * mean_G1
        rows_GK = torch.randint(len(u_RE), dead_GK.shape, generator=generator, device=u_RE.device)
        groups_G1 = torch.arange(num_groups, device=u_RE.device)[:, None]
        drawn_GKd = u_RE.view(-1, num_groups, group_width)[rows_GK, groups_G1]
        counts_GK = torch.where(dead_GK, mean_G1, self.counts_GK)
        dead_GK1 = dead_GK.unsqueeze(-1)
        self.codewords_GKd.copy_(torch.where(dead_GK1, drawn_GKd, self.codewords_GKd))
        self.sums_GKd.copy_(torch.where(dead_GK1, drawn_GKd * mean_G1.unsqueeze(-1), self.sums_GKd))
        self.counts_GK.copy_(counts_GK)


@torch.no_grad()
def nearest_codes(u_RE: Tensor, codewords_GKd: Tensor) -> Tensor:
    """Return codes_RG as `GroupedCodebook.encode` does, on any device and fast for many rows.

    Source: as there, arg-max (u·c - ‖c‖²/2); here some rows of all groups at a time.
    """
    num_groups, num_codewords, group_width = codewords_GKd.shape
    codewords_GdK = codewords_GKd.transpose(1, 2)
    minus_half_norms_G1K = -0.5 * codewords_GKd.square().sum(dim=-1).unsqueeze(1)
    u_GRd = u_RE.view(-1, num_groups, group_width).transpose(0, 1).contiguous()
    most_scores = CPU_SCORES_AT_ONCE if u_RE.device.type == "cpu" else GPU_SCORES_AT_ONCE
    at_once = max(most_scores // (num_groups * num_codewords), 1)
    scores_GRK = u_RE.new_empty(num_groups, at_once, num_codewords)
    codes = []
    for part_GRd in torch.split(u_GRd, at_once, dim=1):
        filled_GRK = scores_GRK if part_GRd.shape[1] == at_once else None
        found_GRK = torch.baddbmm(minus_half_norms_G1K, part_GRd, codewords_GdK, out=filled_GRK)
        codes.append(_arg_max(found_GRK))
    return torch.cat(codes, dim=1).t()


def _arg_max(scores_GRK: Tensor) -> Tensor:
    """Return the first of the largest; on a CPU, NumPy takes a fifteenth of torch's time."""
    if scores_GRK.device.type == "cpu":
        return torch.from_numpy(scores_GRK.numpy().argmax(axis=-1))
    return scores_GRK.argmax(dim=-1)


def _fp32_on(device_type: str) -> AbstractContextManager[object]:
    """Turn autocast off, where a device has it: codes of bf16 scores would not be those of a real run."""
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else nullcontext()


def _local(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """Return a generator that can draw on `device`: this one, or one of a GPU that it seeds without waiting for it."""
    if device.type in (generator.device.type, "meta"):
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)
