"""Defines the results of the public functions: frozen dataclasses of tensors.

Metrics are sums, not means, because only sums can be added over micro-batches and ranks. A reader that
shows them divides at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probability of each target and entropy of each distribution."""

    logprob_T: Tensor
    """fp32 [T], natural logarithm; 0 where `mask_T` is false."""
    entropy_T: Tensor
    """fp32 [T], in nats; 0 where `mask_T` is false."""


@dataclass(frozen=True)
class GroupAdvantages:
    """Group-relative advantages, and the statistics they were computed from."""

    advantage_S: Tensor
    """fp32 [S]. Exactly 0 for a group of one and for a group of equal rewards."""
    mean_G: Tensor
    """fp32 [G]: mean weighted reward."""
    std_G: Tensor
    """fp32 [G]: standard deviation of the weighted reward, n - 1 below the line; 0 for a group of one."""
    range_G: Tensor
    """fp32 [G]: largest minus smallest of the component whose range the threshold is compared with."""
    weight_G: Tensor
    """fp32 [G]: weight of the group in the loss; 0 if the range threshold gates it."""
    weight_S: Tensor
    """fp32 [S]: `weight_G` of each sample's group, in the form of `grpo_loss(sequence_weight_S=...)`."""


@dataclass(frozen=True)
class LossMetrics:
    """fp32 scalars over the unmasked tokens of this call: all are sums, except the one maximum."""

    sequences: Tensor
    """Sequences with at least one unmasked token."""
    tokens: Tensor
    """Unmasked tokens."""
    ratio: Tensor
    """Policy ratio, per token (a sequence-level ratio counts once per token)."""
    clipped_low: Tensor
    """Tokens with a negative advantage and a ratio below 1 - clip_low: no policy gradient."""
    clipped_high: Tensor
    """Tokens with a positive advantage and a ratio above 1 + clip_high: no policy gradient."""
    dual_clipped: Tensor
    """Tokens whose loss the dual clip limits: no policy gradient."""
    kl: Tensor
    """KL estimate to the reference; 0 without `ref_logprob_T`."""
    entropy: Tensor
    """Entropy, in nats."""
    logprob: Tensor
    """Log-probability of the targets."""
    importance_weight: Tensor
    """Importance weight between rollout engine and trainer, after truncation. Without
    `rollout_logprob_T`, the token count.
    """
    importance_truncated: Tensor
    """Tokens whose importance weight was above the cap."""
    rollout_gap: Tensor
    """|old - rollout| log-probability; 0 without `rollout_logprob_T`."""
    rollout_gap_max: Tensor
    """Largest |old - rollout|: a maximum, not a sum."""


SUM_FIELDS = tuple(entry.name for entry in fields(LossMetrics) if entry.name != "rollout_gap_max")


@dataclass(frozen=True)
class LossResult:
    """The loss of one micro-batch, and the values computed on the way."""

    loss: Tensor
    """fp32 scalar; differentiable in the logits, or in the hidden states and the weight."""
    logprob_T: Tensor
    """fp32 [T], detached; 0 where masked."""
    entropy_T: Tensor
    """fp32 [T], detached; 0 where masked."""
    metrics: LossMetrics
    """Sums for logging."""
