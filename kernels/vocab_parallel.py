"""Computes the softmax over a vocabulary that is split across tensor-parallel ranks.

Every rank reduces its own columns to four numbers per token; two small all-reduces (a MAX, then a SUM
of three rows) join them. The log-sum-exp is kept as the pair (max, log of the sum of exp(x - max)) and
never added up: log p = (x - max) - log_sum loses nothing if the logits are large, while x - lse would
lose one bit for every doubling of |x|.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

LOWEST = -1e30
"""Start of a running maximum. Finite, so that a shard that is all padding (sum 0) makes no NaN; a logit
below it counts as -inf.
"""


@dataclass(frozen=True)
class VocabShard:
    """The columns of the vocabulary that this rank holds."""

    start: int
    """Global id of the first local column."""
    columns: int
    """Local columns, padding included."""
    real_columns: int
    """Leading local columns that are real vocabulary entries. The others are padding and take no probability.
    """
    group: ProcessGroup | None
    """Tensor-parallel group; None if the vocabulary is whole."""

    @property
    def vocab_end(self) -> int:
        """One past the global id of the last real local column."""
        return self.start + self.real_columns

    def local_columns(self, targets_T: Tensor) -> tuple[Tensor, Tensor]:
        """Tell which targets this rank holds, bool [T], and their local columns, int64 [T] (0 for the
        others).
        """
        held_T = (targets_T >= self.start) & (targets_T < self.vocab_end)
        return held_T, torch.where(held_T, targets_T - self.start, 0).long()


@dataclass(frozen=True)
class ShardStats:
    """One rank's share of each token's softmax, fp32 [T] each; d = (logit - max) / temperature."""

    max_T: Tensor
    """Largest logit; LOWEST if the shard is all padding."""
    sum_T: Tensor
    """Sum of exp(d)."""
    weighted_T: Tensor
    """Sum of exp(d) * d: about the maximum, so that the entropy does not cancel."""
    target_T: Tensor
    """Logit of the target; 0 if another rank holds it."""


@dataclass(frozen=True)
class SoftmaxStats:
    """Each token's softmax over the whole vocabulary, fp32 [T] each."""

    max_T: Tensor
    """Largest logit over all ranks."""
    log_sum_T: Tensor
    """log of the sum of exp(d): log p(v) = (logit_v - max) / temperature - log_sum."""
    logprob_T: Tensor
    """log p(target)."""
    entropy_T: Tensor
    """Entropy, in nats."""

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the four tensors in the order of the fields, for autograd to save."""
        return self.max_T, self.log_sum_T, self.logprob_T, self.entropy_T


def vocab_shard(columns: int, vocab_size: int | None, group: ProcessGroup | None) -> VocabShard:
    """Describe this rank's columns, `columns` wide. Ranks hold equal widths in rank order, as Megatron
    splits them.

    Raises:
        ValueError: `vocab_size` is not within the columns of all ranks.
    """
    rank, size = (group.rank(), group.size()) if group is not None else (0, 1)
    total = columns * size
    if vocab_size is not None and not 0 < vocab_size <= total:
        raise ValueError(
            f"vocab_size is {vocab_size}: expected 1 to {total}, the {columns} columns of each of "
            f"{size} ranks"
        )
    start = rank * columns
    real = min(max((vocab_size or total) - start, 0), columns)
    return VocabShard(start, columns, real, group if size > 1 else None)


def combine(
    stats: ShardStats, targets_T: Tensor, mask_T: Tensor | None, shard: VocabShard, inv_temperature: float
) -> SoftmaxStats:
    """Join the ranks' statistics: one MAX all-reduce [T] and one SUM all-reduce [3, T] (none for a
    whole vocabulary).

    Log-probability and entropy are 0 where `mask_T` is false.
    """
    held_T, _ = shard.local_columns(targets_T)
    max_T = stats.max_T
    if shard.group is not None:
        max_T = max_T.clone()
        dist.all_reduce(max_T, op=dist.ReduceOp.MAX, group=shard.group)
    shift_T = (stats.max_T - max_T) * inv_temperature
    scale_T = shift_T.exp()
    sums_3T = torch.stack(
        (
            stats.sum_T * scale_T,
            (stats.weighted_T + stats.sum_T * shift_T) * scale_T,
            torch.where(held_T, (stats.target_T - max_T) * inv_temperature, 0.0),
        )
    )
    if shard.group is not None:
        dist.all_reduce(sums_3T, group=shard.group)
    sum_T, weighted_T, target_T = sums_3T
    log_sum_T = sum_T.log()
    logprob_T, entropy_T = target_T - log_sum_T, log_sum_T - weighted_T / sum_T
    if mask_T is not None:
        logprob_T, entropy_T = logprob_T.where(mask_T, 0.0), entropy_T.where(mask_T, 0.0)
    return SoftmaxStats(max_T, log_sum_T, logprob_T, entropy_T)
