"""Fuses the output projection with the loss: logits exist for one chunk of tokens at a time.

Per chunk: GEMM, softmax statistics (and their all-reduce), the loss's derivatives, `dlogits` in place
over the chunk's logits, then the two GEMMs of the backward pass. A token-level loss knows its
derivatives right after the statistics, so each chunk is visited once: 6 T H V operations, the least
there is. The GEMMs are the vendor's library; only the steps between them are ours.

If the statistics can leave e = exp(d) in the place of the logits (the CPU path) and the entropy has no
gradient, `dlogits` is not needed: a row's gradient is then g (1[target] - f e) with one factor f, and
both products of e with a factor per row can take that factor on the side that is H wide instead of V.
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

DEFAULT_CHUNK_TOKENS = 512
"""Tokens per chunk: enough rows for efficient GEMMs, few enough that a chunk's logits stay small beside
the weight.
"""

WEIGHT_BLOCK_ELEMENTS = 1 << 22
"""Elements of the weight gradient computed at once if it must be widened to fp32 before it is added."""

ROW_GAP = 64
"""Unused numbers after each row of a chunk's logits. Vocabularies are multiples of large powers of two,
and rows that far apart fall into the same few sets of a cache, which costs a CPU's GEMMs 4 to 8%
(docs/kernels.md).
"""


@dataclass(frozen=True)
class Head:
    """The output projection: how hidden states become chunks of logits."""

    backend: Backend
    shard: VocabShard
    inv_temperature: float
    chunk_tokens: int
    """Tokens per chunk."""
    weight_main_grad_VH: Tensor | None
    """fp32; the weight's gradient is added here chunk by chunk. None returns it to autograd."""

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens is {self.chunk_tokens}: expected at least 1")


@dataclass(frozen=True)
class Chunk:
    """Some tokens on their way through the projection.

    All chunks share one buffer of logits, so use each before asking for the next.
    """

    rows: Rows
    hidden_cH: Tensor
    logits_cV: Tensor
    """The logits. After `chunk_stats` with `keep_exp`: exp(d), d = (logit - largest of this shard) /
    temperature.
    """


def linear_stats(
    head: Head, hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, mask_T: Tensor | None
) -> SoftmaxStats:
    """Compute softmax statistics of every unmasked token. Log-probability and entropy are 0 elsewhere."""
    whole = SoftmaxStats(*torch.zeros(4, hidden_TH.shape[0], dtype=torch.float32, device=hidden_TH.device))
    for chunk in _chunk_logits(head, hidden_TH, weight_VH, mask_T):
        softmax, _ = chunk_stats(head, chunk, targets_T)
        for whole_T, chunk_c in zip(whole.tensors(), softmax.tensors()):
            whole_T[chunk.rows] = chunk_c
    return whole


def chunk_stats(
    head: Head, chunk: Chunk, targets_T: Tensor, keep_exp: bool = False
) -> tuple[SoftmaxStats, Tensor]:
    """Compute one chunk's softmax statistics, reduced over ranks, and f [c].

    The probability of a local column is f exp(d).
    """
    targets_c = targets_T[chunk.rows]
    stats = head.backend.vocab_stats(
        chunk.logits_cV, targets_c, None, head.shard, head.inv_temperature, keep_exp
    )
    softmax = combine(stats, targets_c, None, head.shard, head.inv_temperature)
    return softmax, ((stats.max_T - softmax.max_T) * head.inv_temperature - softmax.log_sum_T).exp()


def _chunk_logits(head: Head, hidden_TH: Tensor, weight_VH: Tensor, live_T: Tensor | None) -> Iterator[Chunk]:
    """Yield the chunks of live tokens, with their logits."""
    tokens = hidden_TH.shape[0]
    vocabulary = weight_VH.shape[0]
    rows_apart = torch.empty(
        min(head.chunk_tokens, tokens), vocabulary + ROW_GAP, dtype=hidden_TH.dtype, device=hidden_TH.device
    )
    buffer = rows_apart[:, :vocabulary]
    for rows in row_chunks(live_T, tokens, head.chunk_tokens):
        hidden_cH = hidden_TH[rows]
        yield Chunk(rows, hidden_cH, torch.mm(hidden_cH, weight_VH.t(), out=buffer[: len(hidden_cH)]))


class LinearGradients:
    """Gradients of hidden states and weight, accumulated chunk by chunk.

    If autograd needs neither, both stay None and only logits are made.
    """

    def __init__(self, head: Head, hidden_TH: Tensor, weight_VH: Tensor, needed: tuple[bool, bool]) -> None:
        self.head = head
        self._hidden_TH, self._weight_VH = hidden_TH, weight_VH
        self._dhidden_TH = torch.zeros_like(hidden_TH) if needed[0] else None
        # A main gradient is added to. A matrix of our own is overwritten by the first chunk, which
        # saves zeroing it.
        self._dweight_begun = head.weight_main_grad_VH is not None
        self._dweight_VH: Tensor | None = None
        if needed[1]:
            main_VH = head.weight_main_grad_VH
            self._dweight_VH = (
                torch.empty_like(weight_VH, dtype=torch.float32) if main_VH is None else main_VH
            )

    @property
    def needed(self) -> bool:
        """Whether any of the two gradients is needed."""
        return self._dhidden_TH is not None or self._dweight_VH is not None

    def can_keep_exp(self, entropy_weight: float) -> bool:
        """Whether `add_exp` can follow the statistics."""
        return (
            self.needed
            and entropy_weight == 0
            and self.head.backend.can_keep_exp
            and self._hidden_TH.dtype == torch.float32
        )

    def chunks(self, live_T: Tensor | None) -> Iterator[Chunk]:
        return _chunk_logits(self.head, self._hidden_TH, self._weight_VH, live_T)

    def add(
        self, chunk: Chunk, targets_c: Tensor, softmax: SoftmaxStats, dlogprob_c: Tensor, dentropy_c: Tensor
    ) -> None:
        """Add a chunk's gradients: write `dlogits` over its logits, then run two GEMMs.

        One gives the chunk's hidden gradient, the other its share of the weight's.
        """
        if not self.needed:
            return
        head, dlogits_cV = self.head, chunk.logits_cV
        head.backend.dlogits_(
            dlogits_cV, targets_c, softmax, dlogprob_c, dentropy_c, head.shard, head.inv_temperature
        )
        if self._dhidden_TH is not None:
            self._dhidden_TH[chunk.rows] = torch.mm(dlogits_cV, self._weight_VH)
        if self._dweight_VH is not None:
            self._add_weight(self._dweight_VH, dlogits_cV, chunk.hidden_cH)

    def add_exp(self, chunk: Chunk, targets_c: Tensor, factor_c: Tensor, dlogprob_c: Tensor) -> None:
        """Add a chunk's gradients if the chunk holds exp(d): dL / dlogits = g 1[target] - g f exp(d).

        The GEMMs are then the only pass over it.
        """
        g_c1 = (dlogprob_c * self.head.inv_temperature)[:, None]
        minus_gf_c1 = -g_c1 * factor_c[:, None]
        held_c, column_c = self.head.shard.local_columns(targets_c)
        target_g_c1 = g_c1 * held_c[:, None]
        if self._dhidden_TH is not None:
            share_cH = torch.mm(chunk.logits_cV, self._weight_VH).mul_(minus_gf_c1)
            self._dhidden_TH[chunk.rows] = share_cH.addcmul_(self._weight_VH[column_c], target_g_c1)
        if self._dweight_VH is not None:
            self._add_weight(self._dweight_VH, chunk.logits_cV, chunk.hidden_cH * minus_gf_c1)
            self._dweight_VH.index_add_(0, column_c, chunk.hidden_cH * target_g_c1)

    def _add_weight(self, dweight_VH: Tensor, dlogits_cV: Tensor, hidden_cH: Tensor) -> None:
        kept, self._dweight_begun = int(self._dweight_begun), True
        if dlogits_cV.dtype == torch.float32:
            dweight_VH.addmm_(dlogits_cV.t(), hidden_cH, beta=kept)
            return
        block = max(1, WEIGHT_BLOCK_ELEMENTS // hidden_cH.shape[1])
        for total_bH, dlogits_cb in zip(dweight_VH.split(block), dlogits_cV.split(block, dim=1)):
            share_bH = torch.mm(dlogits_cb.t(), hidden_cH)
            total_bH.add_(share_bH) if kept else total_bH.copy_(share_bH)

    def recompute(
        self, targets_T: Tensor, softmax: SoftmaxStats, dlogprob_T: Tensor, dentropy_T: Tensor
    ) -> None:
        """Make every chunk's logits again and add their gradients.

        Tokens without a derivative are left out.
        """
        for chunk in self.chunks((dlogprob_T != 0) | (dentropy_T != 0)):
            rows = chunk.rows
            self.add(
                chunk,
                targets_T[rows],
                SoftmaxStats(*(stat_T[rows] for stat_T in softmax.tensors())),
                dlogprob_T[rows],
                dentropy_T[rows],
            )

    def finish(self, scale: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        """Return both gradients times `scale`, the hidden one summed over ranks.

        The weight's is None if its main gradient holds it.

        Raises:
            RuntimeError: a scale other than 1 after the main gradient took its share (on a GPU: a
                device assertion).
        """
        dhidden_TH, dweight_VH = self._dhidden_TH, self._dweight_VH
        if dweight_VH is not None and not self._dweight_begun:
            dweight_VH.zero_()  # no live token
        if dhidden_TH is not None and self.head.shard.group is not None:
            dist.all_reduce(dhidden_TH, group=self.head.shard.group)
        if self.head.weight_main_grad_VH is not None:
            if scale is not None:
                torch._assert_async(
                    scale == 1, "weight_main_grad_VH was added to before backward: the loss may not be scaled"
                )
            return dhidden_TH, None
        if scale is not None and scale.device.type == "cpu" and scale.item() == 1:
            # The scale is 1 after a plain loss.backward(): skipping it saves a pass over a matrix as
            # large as the weight. On a GPU, looking at it would be a wait.
            scale = None
        if scale is not None:
            dhidden_TH = None if dhidden_TH is None else dhidden_TH.mul_(scale)
            dweight_VH = None if dweight_VH is None else dweight_VH.mul_(scale)
        return dhidden_TH, None if dweight_VH is None else dweight_VH.to(self._weight_VH.dtype)
