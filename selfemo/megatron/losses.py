"""The losses Megatron's schedule calls on the last stage, all computed by selfemo.kernels.

Each takes this rank's logits shard of a micro-batch's completion tokens and returns a plain sum: weights come from counts of
the whole batch, so that micro-batches, data-parallel and context-parallel ranks add up to the batch's loss whatever the layout. A
rank that holds no completion token of a micro-batch contributes exactly nothing, and keeps the schedule in step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from selfemo.grpo.samples import TrainingSample
from selfemo.kernels import BatchCounts, LossConfig, grpo_loss, token_logprobs
from selfemo.kernels.results import SUM_FIELDS
from selfemo.megatron.packing import MicroBatch

LossFunction = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]]
"""Takes logits [1, N, V/tp]; returns loss, a token count for megatron-core (unused), and what the step collects.

Logits are squeezed, not indexed: the backward of an index would copy the gradient into a second matrix of zeros."""

SUMS = "sums"
MAXIMA = "maxima"
LOGPROBS = "logprobs"


@dataclass(frozen=True)
class LossContext:
    """What every loss needs beside the micro-batch."""

    vocab_size: int
    """Real entries; padded ones are masked out of softmax and entropy."""
    tensor_group: dist.ProcessGroup | None
    temperature: float


def _gap_max(logprob_N: torch.Tensor, rollout_N: torch.Tensor) -> torch.Tensor:
    """Largest |trainer - engine| logprob."""
    return (logprob_N - rollout_N).abs().amax()


def _dummy_count(logits: torch.Tensor) -> torch.Tensor:
    return torch.zeros([], dtype=torch.int, device=logits.device)


def sft_loss(batch: MicroBatch, context: LossContext, batch_sequences: int) -> LossFunction:
    """Negative logprob, mean over each completion's tokens, then over the batch's sequences. sums: loss, tokens.

    Sequences weigh alike because the two tasks differ in length: by the token, a reply would drown the few tokens of a label.
    """

    def loss(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        if not batch.sample_indices:
            zero = logits.sum() * 0
            return zero, _dummy_count(logits), {SUMS: zero.detach().expand(2)}
        out = token_logprobs(logits.squeeze(0), batch.target_ids_N, vocab_size=context.vocab_size, tp_group=context.tensor_group)
        weight_S = 1.0 / (batch.completion_tokens_S * batch_sequences)
        weight_N = weight_S.repeat_interleave(batch.completion_bounds.diff())
        total = -(out.logprob_T * weight_N).sum()
        sums = torch.stack([total.detach(), total.new_tensor(batch.target_ids_N.numel())])
        return total, _dummy_count(logits), {SUMS: sums}

    return loss


def logprob_pass(batch: MicroBatch, context: LossContext) -> LossFunction:
    """No loss: collects logprob_N of the completion tokens at the rollout temperature."""

    def collect(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        if not batch.sample_indices:
            return logits.sum() * 0, _dummy_count(logits), {LOGPROBS: logits.new_zeros(0, dtype=torch.float32)}
        out = token_logprobs(
            logits.squeeze(0),
            batch.target_ids_N,
            vocab_size=context.vocab_size,
            temperature=context.temperature,
            tp_group=context.tensor_group,
        )
        return logits.sum() * 0, _dummy_count(logits), {LOGPROBS: out.logprob_T.detach()}

    return collect


POLICY_SUMS = ("loss", *(name for name in SUM_FIELDS if name != "sequences"))
"""What `policy_loss` collects as sums, in order. Sequences are left out: several context ranks may count the same one."""


def policy_loss(
    batch: MicroBatch,
    samples: list[TrainingSample],
    context: LossContext,
    config: LossConfig,
    counts: BatchCounts,
    ref_logprob_N: torch.Tensor | None,
    old_logprob_N: torch.Tensor | None,
) -> LossFunction:
    """SELF-GRPO (or one of its variants) over a micro-batch; see selfemo.kernels.grpo_loss. Logprobs are of this rank's N tokens."""
    chosen = [samples[i] for i in batch.sample_indices]

    def loss(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        def tensor(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=logits.device)

        if not chosen:
            zero = logits.sum() * 0
            return zero, _dummy_count(logits), {SUMS: zero.detach().expand(len(POLICY_SUMS)), MAXIMA: zero.detach()[None]}
        rollout_N = tensor([s.rollout_logprobs[place] for s, places in zip(chosen, batch.target_places) for place in places])
        weight_S = tensor([s.weight for s in chosen])
        if config.aggregation == "sequence_mean":  # the kernel divides by the tokens it sees, the mean is over the whole completion
            weight_S *= batch.completion_bounds.diff() / batch.completion_tokens_S
        out = grpo_loss(
            logits.squeeze(0),
            batch.target_ids_N,
            batch.completion_bounds,
            advantage_S=tensor([s.advantage for s in chosen]),
            sequence_weight_S=weight_S,
            old_logprob_T=old_logprob_N,
            ref_logprob_T=ref_logprob_N,
            rollout_logprob_T=rollout_N,
            counts=counts,
            config=config,
            vocab_size=context.vocab_size,
            tp_group=context.tensor_group,
        )
        sums = torch.stack([out.loss.detach(), *(getattr(out.metrics, name) for name in POLICY_SUMS[1:])])
        return out.loss, _dummy_count(logits), {SUMS: sums, MAXIMA: _gap_max(out.logprob_T, rollout_N)[None]}

    return loss
