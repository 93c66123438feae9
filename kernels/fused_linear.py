"""The output projection fused with the loss: logits exist one chunk of tokens at a time.

Per chunk: GEMM, K1 (and its all-reduce), the loss's derivatives, K3 in place over the chunk's logits, then the two GEMMs of the
backward pass. A token-level loss knows its derivatives as soon as K1 is done, so each chunk is visited once: 6 T H V operations,
the least there is. The GEMMs are the vendor's library; only what lies between them is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from selfemo.kernels.backend import Backend
from selfemo.kernels.chunks import Rows, row_chunks
from selfemo.kernels.vocab_parallel import SoftmaxStats, VocabShard, combine

DEFAULT_CHUNK_TOKENS = 256
"""Tokens per chunk: enough rows for the GEMMs to be efficient, few enough that a chunk's logits stay small beside the weight."""

WEIGHT_BLOCK_ELEMENTS = 1 << 22
"""Elements of the weight gradient computed at once where it must be widened to fp32 before it is added."""


@dataclass(frozen=True)
class Head:
    """How hidden states become chunks of logits."""

    backend: Backend
    shard: VocabShard
    inv_temperature: float
    chunk_tokens: int
    """Tokens per chunk."""
    weight_main_grad_VH: Tensor | None
    """Where the weight's gradient is added, fp32; None returns it to autograd."""

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens is {self.chunk_tokens}: expected at least 1")


def linear_stats(head: Head, hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, mask_T: Tensor | None) -> SoftmaxStats:
    """Softmax statistics of every unmasked token; log-probability and entropy are 0 elsewhere."""
    whole = SoftmaxStats(*torch.zeros(4, hidden_TH.shape[0], dtype=torch.float32, device=hidden_TH.device))
    for rows, _, logits_cV in _chunk_logits(head, hidden_TH, weight_VH, mask_T):
        for whole_T, chunk_c in zip(whole.tensors(), chunk_stats(head, logits_cV, targets_T[rows]).tensors()):
            whole_T[rows] = chunk_c
    return whole


def chunk_stats(head: Head, logits_cV: Tensor, targets_c: Tensor) -> SoftmaxStats:
    """Softmax statistics of one chunk, reduced over ranks."""
    stats = head.backend.vocab_stats(logits_cV, targets_c, None, head.shard, head.inv_temperature)
    return combine(stats, targets_c, None, head.shard, head.inv_temperature)


def _chunk_logits(head: Head, hidden_TH: Tensor, weight_VH: Tensor, live_T: Tensor | None) -> Iterator[tuple[Rows, Tensor, Tensor]]:
    """Per chunk of live tokens: its rows, hidden states and logits. All chunks share one buffer: use it before the next."""
    tokens = hidden_TH.shape[0]
    buffer = torch.empty(min(head.chunk_tokens, tokens), weight_VH.shape[0], dtype=hidden_TH.dtype, device=hidden_TH.device)
    for rows in row_chunks(live_T, tokens, head.chunk_tokens):
        hidden_cH = hidden_TH[rows]
        yield rows, hidden_cH, torch.mm(hidden_cH, weight_VH.t(), out=buffer[: len(hidden_cH)])


class LinearGradients:
    """Gradients of hidden states and weight, grown chunk by chunk; without `needed` they stay None and only logits are made."""

    def __init__(self, head: Head, hidden_TH: Tensor, weight_VH: Tensor, needed: tuple[bool, bool]) -> None:
        self.head = head
        self._hidden_TH, self._weight_VH = hidden_TH, weight_VH
        self._dhidden_TH = torch.zeros_like(hidden_TH) if needed[0] else None
        self._dweight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if needed[1] else None

    def chunks(self, live_T: Tensor | None) -> Iterator[tuple[Rows, Tensor, Tensor]]:
        """Rows, hidden states and logits of each chunk of live tokens."""
        return _chunk_logits(self.head, self._hidden_TH, self._weight_VH, live_T)

    def add(
        self,
        rows: Rows,
        hidden_cH: Tensor,
        logits_cV: Tensor,
        targets_c: Tensor,
        softmax: SoftmaxStats,
        dlogprob_c: Tensor,
        dentropy_c: Tensor,
    ) -> None:
        """K3 over the chunk's logits, then two GEMMs: the chunk's hidden gradient, and its share of the weight's."""
        if self._dhidden_TH is None and self._dweight_VH is None:
            return
        head = self.head
        head.backend.dlogits_(logits_cV, targets_c, softmax, dlogprob_c, dentropy_c, head.shard, head.inv_temperature)
        if self._dhidden_TH is not None:
            self._dhidden_TH[rows] = torch.mm(logits_cV, self._weight_VH)
        if self._dweight_VH is not None and logits_cV.dtype == torch.float32:
            self._dweight_VH.addmm_(logits_cV.t(), hidden_cH)
        elif self._dweight_VH is not None:
            block = max(1, WEIGHT_BLOCK_ELEMENTS // hidden_cH.shape[1])
            for total_bH, dlogits_cb in zip(self._dweight_VH.split(block), logits_cV.split(block, dim=1)):
                total_bH.add_(torch.mm(dlogits_cb.t(), hidden_cH))

    def recompute(self, targets_T: Tensor, softmax: SoftmaxStats, dlogprob_T: Tensor, dentropy_T: Tensor) -> None:
        """Make every chunk's logits again and add their gradients; tokens without a derivative are left out."""
        for rows, hidden_cH, logits_cV in self.chunks((dlogprob_T != 0) | (dentropy_T != 0)):
            chunk = SoftmaxStats(*(stat_T[rows] for stat_T in softmax.tensors()))
            self.add(rows, hidden_cH, logits_cV, targets_T[rows], chunk, dlogprob_T[rows], dentropy_T[rows])

    def finish(self, scale: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """The two gradients times `scale`, the hidden one summed over ranks; the weight's goes into its main gradient if given."""
        dhidden_TH, dweight_VH, main_VH = self._dhidden_TH, self._dweight_VH, self.head.weight_main_grad_VH
        if dhidden_TH is not None and self.head.shard.group is not None:
            dist.all_reduce(dhidden_TH, group=self.head.shard.group)
        if scale is not None:
            dhidden_TH = None if dhidden_TH is None else dhidden_TH.mul_(scale)
            dweight_VH = None if dweight_VH is None else dweight_VH.mul_(scale)
        if dweight_VH is None or main_VH is None:
            return dhidden_TH, None if dweight_VH is None else dweight_VH.to(self._weight_VH.dtype)
        main_VH.add_(dweight_VH)
        return dhidden_TH, None
