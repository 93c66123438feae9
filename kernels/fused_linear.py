"""The output projection fused with the loss: logits exist one chunk of tokens at a time.

Per chunk: GEMM, K1 (and its all-reduce), the loss's derivatives, K3 in place over the chunk's logits, then the two GEMMs of the
backward pass. A token-level loss knows its derivatives as soon as K1 is done, so each chunk is visited once: 6 T H V operations,
the least there is. The GEMMs are the vendor's library; only what lies between them is ours.
"""

from __future__ import annotations

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


class ChunkLogits:
    """One buffer for the logits of a chunk, reused by every chunk."""

    def __init__(self, head: Head, hidden_TH: Tensor, weight_VH: Tensor) -> None:
        rows = min(head.chunk_tokens, hidden_TH.shape[0])
        self._buffer = torch.empty(rows, weight_VH.shape[0], dtype=hidden_TH.dtype, device=hidden_TH.device)
        self._weight_VH = weight_VH

    def of(self, hidden_cH: Tensor) -> Tensor:
        """Logits [c, V / tp] of a chunk's hidden states; the next call overwrites them."""
        return torch.mm(hidden_cH, self._weight_VH.t(), out=self._buffer[: len(hidden_cH)])


def linear_stats(head: Head, hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, mask_T: Tensor | None) -> SoftmaxStats:
    """Softmax statistics of every unmasked token; log-probability and entropy are 0 elsewhere."""
    tokens = hidden_TH.shape[0]
    total = SoftmaxStats(*(torch.zeros(tokens, dtype=torch.float32, device=hidden_TH.device) for _ in range(4)))
    logits = ChunkLogits(head, hidden_TH, weight_VH)
    for rows in row_chunks(mask_T, tokens, head.chunk_tokens):
        chunk = chunk_stats(head, logits.of(hidden_TH[rows]), targets_T[rows])
        for whole_T, part_c in zip(total.tensors(), chunk.tensors()):
            whole_T[rows] = part_c
    return total


def chunk_stats(head: Head, logits_cV: Tensor, targets_c: Tensor) -> SoftmaxStats:
    """Softmax statistics of one chunk, reduced over ranks."""
    return combine(head.backend.vocab_stats(logits_cV, targets_c, None, head.shard, head.inv_temperature), targets_c, None, head.shard)


class LinearGradients:
    """Gradients of hidden states and weight, summed up chunk by chunk."""

    def __init__(self, head: Head, hidden_TH: Tensor, weight_VH: Tensor, needed: tuple[bool, bool]) -> None:
        self._head, self._hidden_TH, self._weight_VH = head, hidden_TH, weight_VH
        self._dhidden_TH = torch.zeros_like(hidden_TH) if needed[0] else None
        self._dweight_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if needed[1] else None

    def add(self, rows: Rows, hidden_cH: Tensor, dlogits_cV: Tensor) -> None:
        """Two GEMMs: the chunk's hidden gradient, and its share of the weight's."""
        if self._dhidden_TH is not None:
            if isinstance(rows, slice):
                torch.mm(dlogits_cV, self._weight_VH, out=self._dhidden_TH[rows])
            else:
                self._dhidden_TH[rows] = torch.mm(dlogits_cV, self._weight_VH)
        if self._dweight_VH is not None:
            if dlogits_cV.dtype == torch.float32:
                self._dweight_VH.addmm_(dlogits_cV.t(), hidden_cH)
            else:
                block = max(1, WEIGHT_BLOCK_ELEMENTS // hidden_cH.shape[1])
                for total_bH, dlogits_cb in zip(self._dweight_VH.split(block), dlogits_cV.split(block, dim=1)):
                    total_bH.add_(torch.mm(dlogits_cb.t(), hidden_cH))

    def recompute(self, targets_T: Tensor, softmax: SoftmaxStats, dlogprob_T: Tensor, dentropy_T: Tensor) -> None:
        """Make every chunk's logits again and differentiate them; tokens without a derivative are left out."""
        head, logits = self._head, ChunkLogits(self._head, self._hidden_TH, self._weight_VH)
        live_T = (dlogprob_T != 0) | (dentropy_T != 0)
        for rows in row_chunks(live_T, len(targets_T), head.chunk_tokens):
            hidden_cH = self._hidden_TH[rows]
            logits_cV = logits.of(hidden_cH)
            chunk = SoftmaxStats(*(stat_T[rows] for stat_T in softmax.tensors()))
            head.backend.dlogits_(logits_cV, targets_T[rows], chunk, dlogprob_T[rows], dentropy_T[rows], head.shard, head.inv_temperature)
            self.add(rows, hidden_cH, logits_cV)

    def finish(self, scale: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """The two gradients times `scale`, summed over ranks where the vocabulary is split; a main gradient is added to."""
        dhidden_TH, dweight_VH = self._dhidden_TH, self._dweight_VH
        if dhidden_TH is not None and self._head.shard.group is not None:
            dist.all_reduce(dhidden_TH, group=self._head.shard.group)
        if scale is not None:
            dhidden_TH = None if dhidden_TH is None else dhidden_TH.mul_(scale)
            dweight_VH = None if dweight_VH is None else dweight_VH.mul_(scale)
        if dweight_VH is not None and self._head.weight_main_grad_VH is not None:
            self._head.weight_main_grad_VH.add_(dweight_VH)
            dweight_VH = None
        return dhidden_TH, None if dweight_VH is None else dweight_VH.to(self._weight_VH.dtype)
