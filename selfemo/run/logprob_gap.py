"""Checks that the engine samples from the model that is trained: their logprobs differ by rounding alone.

Checksums prove that the engine has the weights, and greedy probes that its best token is right. A factor on
the logits, or a layer that one of the two leaves out, can pass both; no such thing leaves logprobs alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from selfemo.config.logprob_gap import GapBounds
from selfemo.megatron.step_stats import PolicyStats


def gap_problem(
    stats: PolicyStats,
    bounds: GapBounds,
    decode: Callable[[Sequence[int]], str],
) -> str:
    """Say which bound the gap of a step exceeds, and at which token; "" if it exceeds none.

    Args:
        stats: of a step under the weights that sampled.
        decode: token ids -> text.
    """
    at = stats.largest_gap
    if stats.logprob_gap_max > bounds.largest:
        problem = f"above rollout.max_logprob_gap={bounds.largest:.2g}"
    elif stats.logprob_gap_mean > bounds.mean:
        problem = (
            f"and {stats.logprob_gap_mean:.2g} on average, "
            f"above rollout.max_mean_logprob_gap={bounds.mean:.2g}"
        )
    else:
        return ""
    return (
        f"engine and trainer disagree: token {at.token} ({decode([at.token])!r}) at place {at.place} of the "
        f"completion of sample {at.sample} has logprob {at.engine:.6g} in the engine and {at.trainer:.6g} "
        f"in the trainer, {stats.logprob_gap_max:.2g} nats apart, {problem}"
    )
