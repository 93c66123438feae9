"""Defines the figures of an optimizer step, which every rank knows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepStats:
    """One optimizer step, the same on every rank."""

    loss: float
    grad_norm: float
    """Before clipping."""
    applied: bool
    """False: the gradient was not finite, so all ranks skipped the step."""
    tokens: int
    """Completion tokens in the batch, over all ranks."""
    learning_rate: float


@dataclass(frozen=True)
class TokenGap:
    """A sampled token, and the logprobs that trainer and engine give it."""

    sample: int = 0
    """Index of its sample in the step's whole batch."""
    place: int = 0
    """Place in that sample's completion, from 0."""
    token: int = 0
    """Its id."""
    trainer: float = 0.0
    engine: float = 0.0


@dataclass(frozen=True)
class PolicyStats:
    """A SELF-GRPO step: the step itself, and means over the tokens that the loss saw.

    metrics.jsonl holds each figure under the name it has here.
    """

    step: StepStats
    kl: float
    clipped_share: float
    """Tokens without a policy gradient: beyond either clip, or held by the dual clip."""
    entropy: float
    ratio_mean: float
    logprob_gap_max: float
    """Largest |trainer - engine| logprob of a sampled token, in nats."""
    logprob_gap_mean: float
    """Mean |trainer - engine| logprob under the weights that sampled, in nats."""
    clipped_low_share: float
    """Tokens with a negative advantage and a ratio below the clip."""
    clipped_high_share: float
    """Tokens with a positive advantage and a ratio above the clip."""
    importance_weight_mean: float
    """Weight between engine and trainer after truncation; 1 without algorithm.truncated_importance_cap."""
    importance_truncated_share: float
    """Tokens whose importance weight was above the cap."""
    logprob_mean: float
    """Mean logprob of the sampled tokens, in nats."""
    supervised_loss: float = 0.0
    """Mean negative logprob of the supervised examples, by their weights, in nats; 0 without any."""
    largest_gap: TokenGap = TokenGap()
    """The token with the gap logprob_gap_max."""


NOT_FIGURES = ("step", "largest_gap")
"""Fields of PolicyStats that are no figures."""
