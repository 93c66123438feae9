"""Bound the difference between the logprobs that the engine and the trainer give a sampled token.

Both compute the same function of the same weights, so they differ by rounding alone. A larger gap means that
one of them computes another model. Importance weights and greedy probes do not show that.

One operation's result carries a relative error of at most u: 2^-8 in bf16, whose products are summed in fp32,
and 2^-24 sqrt(4096) = 2^-18 in fp32, where the sum of 4,096 terms rounds too. A logprob is a logit less the
log of a sum of exponentials. Its error has two parts:

- The hidden state. L layers add 2 L roundings of the residual stream and some 16 of the blocks' parts, that
  is about 5 u relative to the stream (L = 36, independent errors of u / 2.5 in two programs). Of it the part
  along a row of the output layer counts: about 4 u nats for a row that gives logits of 20 to 60.
- The logit itself, rounded where it is stored: u / 2 of its size, so up to 32 u for a logit of 64.

MEAN_UNITS allows the mean eight times the first part, and LARGEST_UNITS allows one token of millions thirty
times the second. Measured: 1e-6 and 1e-4 in fp32 (bounds 1.2e-4 and 3.9e-3), 1.4e-2 and 0.35 in bf16 (0.125
and 4), mean and largest. A temperature below 1 divides logits, so it divides the bounds too.
"""

from __future__ import annotations

from dataclasses import dataclass

from selfemo.config.schema import RunConfig

UNITS = {"float32": 2.0**-18, "bfloat16": 2.0**-8}
"""Relative error of one operation's result."""
MEAN_UNITS = 32
LARGEST_UNITS = 1024


@dataclass(frozen=True)
class GapBounds:
    """Largest |trainer - engine| logprobs that a run accepts, in nats."""

    largest: float
    """Of any sampled token."""
    mean: float
    """Over the tokens of a step."""


def gap_bounds(config: RunConfig) -> GapBounds:
    """Return the configured bounds; null ones follow from the coarser dtype of engine and trainer."""
    rollout = config.rollout
    unit = max(UNITS[rollout.dtype], UNITS[config.train.dtype]) / min(1.0, config.selfplay.temperature)
    return GapBounds(
        rollout.max_logprob_gap or LARGEST_UNITS * unit, rollout.max_mean_logprob_gap or MEAN_UNITS * unit
    )
