"""Declares the four operations that a device must offer, and the tensors that they exchange.

Everything above this interface (checks, tensor parallelism, autograd, chunking) is written once. Below
it, `torch_backend` is the CPU path, chunked and in place, and `triton_backend` launches the Triton
kernels of the same names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from torch import Tensor

from selfemo.kernels.chunks import Rows, borders_inside
from selfemo.kernels.config import AdvantageConfig, LossConfig
from selfemo.kernels.vocab_parallel import ShardStats, SoftmaxStats, VocabShard

Impl = Literal["auto", "triton", "torch"]

SEQUENCE_SUMS = (
    "loss",
    "tokens",
    "ratio",
    "clipped_low",
    "clipped_high",
    "dual_clipped",
    "kl",
    "entropy",
    "logprob",
    "importance_weight",
    "importance_truncated",
    "rollout_gap",
    "rollout_gap_max",
)
"""Columns of `SequenceLoss.sums_SM`: sums over a sequence's unmasked tokens, the last one a maximum."""
MAXIMUM_COLUMN = SEQUENCE_SUMS.index("rollout_gap_max")

LOG_RATIO_BOUND = 20.0
"""Log-ratios are clamped to +-20 before exp, so that one broken token cannot make the loss inf. Beyond
the bound they have no gradient.
"""

DEGENERATE = 1e-6
"""A standard deviation of at most this share of the group's largest reward is rounding alone: fp32
resolves 1.2e-7.
"""


@dataclass(frozen=True)
class PolicyBatch:
    """Per-token references and per-sequence weights of packed sequences: everything the loss needs
    beside the logits.
    """

    old_T: Tensor | None
    """fp32 [T]: logprob under the policy of the rollout. None: this pass is that policy, and the ratio
    is exactly 1.
    """
    ref_T: Tensor | None
    """fp32 [T]: logprob under the reference policy."""
    rollout_T: Tensor | None
    """fp32 [T]: logprob as the rollout engine reported it."""
    mask_T: Tensor
    """bool [T]: completion tokens."""
    cu_seqlens: Tensor
    """int64 [S + 1]: sequence borders. Here, unlike in the public API, a sequence may be empty."""
    advantage_S: Tensor
    """fp32 [S]."""
    token_weight_S: Tensor
    """fp32 [S]: weight in the loss of each of the sequence's tokens; holds aggregation, global counts
    and group weight.
    """
    tokens_S: Tensor
    """fp32 [S]: unmasked tokens of the whole sequence; a chunk may show only some of them."""

    def chunk(self, rows: Rows) -> PolicyBatch:
        """Return the part of the batch that belongs to a chunk of tokens.

        Borders are counted inside the chunk. Weights and token counts stay those of whole sequences.
        """
        old_T, ref_T, rollout_T = (
            None if x is None else x[rows] for x in (self.old_T, self.ref_T, self.rollout_T)
        )
        borders = borders_inside(rows, self.cu_seqlens)
        return replace(
            self, old_T=old_T, ref_T=ref_T, rollout_T=rollout_T, mask_T=self.mask_T[rows], cu_seqlens=borders
        )


@dataclass(frozen=True)
class SequenceLoss:
    """The sequence loss and its derivatives."""

    sums_SM: Tensor
    """fp32 [S, M]: columns as in SEQUENCE_SUMS."""
    dlogprob_T: Tensor
    """fp32 [T]: derivative of the loss in each logprob."""
    dentropy_T: Tensor
    """fp32 [T]: derivative of the loss in each entropy."""


@dataclass(frozen=True)
class GroupStats:
    """Advantages of the samples, and statistics of their groups."""

    advantage_S: Tensor
    """fp32 [S]."""
    mean_G: Tensor
    """fp32 [G]: of the weighted reward."""
    std_G: Tensor
    """fp32 [G]: of the weighted reward."""
    range_G: Tensor
    """fp32 [G]: of the component whose range the threshold is compared with."""


class Backend(Protocol):
    """One implementation of the four operations."""

    can_keep_exp: bool
    """Whether `vocab_stats` takes `keep_exp`. A single pass over memory cannot: it would need a row's
    maximum before it writes.
    """

    def vocab_stats(
        self,
        logits_TV: Tensor,
        targets_T: Tensor,
        live_T: Tensor | None,
        shard: VocabShard,
        inv_temperature: float,
        keep_exp: bool = False,
    ) -> ShardStats:
        """Compute softmax statistics, reading the shard once.

        Rows where `live_T` is false are not read; their statistics are (0, 1, 0, 0). With `keep_exp`
        (fp32 logits), each logit is replaced by exp((logit - max) / temperature), and a padded column
        by 0.
        """
        ...

    def dlogits_(
        self,
        logits_TV: Tensor,
        targets_T: Tensor,
        softmax: SoftmaxStats,
        dlogprob_T: Tensor,
        dentropy_T: Tensor,
        shard: VocabShard,
        inv_temperature: float,
    ) -> None:
        """Overwrite the logits with their gradient. Rows whose two derivatives are 0 are written
        without being read.
        """
        ...

    def sequence_loss(
        self, logprob_T: Tensor, entropy_T: Tensor, batch: PolicyBatch, config: LossConfig
    ) -> SequenceLoss:
        """Compute ratio, clips, KL and importance weight per token; return sums per sequence and
        derivatives per token.
        """
        ...

    def group_advantages(
        self, rewards_SC: Tensor, group_ptr: Tensor, reward_weights_C: Tensor, config: AdvantageConfig
    ) -> GroupStats:
        """Compute the advantages of the weighted total inside each group, and the group's statistics.

        `AdvantageConfig.per_component` is handled above this interface, one call per component.
        """
        ...
