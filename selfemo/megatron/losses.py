"""Take the losses at the output layer on the last stage; selfemo.kernels computes them.

Each takes the predictions of a micro-batch's completion tokens and returns a plain sum. Its weights
come from counts of the whole batch, so that the sums of micro-batches, data-parallel and
context-parallel ranks add up to the batch's loss in any layout. A rank that holds no completion
token of a micro-batch contributes exactly 0, so that it still takes part in the schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypedDict

import torch
import torch.distributed as dist

from selfemo.grpo.samples import TrainingSample
from selfemo.kernels import BatchCounts, LossConfig, grpo_loss, token_logprobs
from selfemo.kernels.results import SUM_FIELDS
from selfemo.megatron.batch import DealtBatch
from selfemo.megatron.largest_gap import WIDTH, largest_gap
from selfemo.megatron.packing import MicroBatch


class Source(TypedDict, total=False):
    """The keyword arguments that give a kernel its logits, or the tensors to compute them from."""

    logits_TV: torch.Tensor | None
    hidden_TH: torch.Tensor | None
    weight_VH: torch.Tensor | None
    weight_main_grad_VH: torch.Tensor | None


@dataclass(frozen=True)
class Predictions:
    """Predictions of the N completion tokens of a micro-batch on this rank: logits, or the hidden
    states and weight that make them.
    """

    hidden_NH: torch.Tensor
    """[N, H], the same on every tensor-parallel rank."""
    logits_NV: torch.Tensor | None = None
    """[N, V/tp]; None if they never exist as a whole."""
    weight_VH: torch.Tensor | None = None
    """This rank's rows [V/tp, H] of the output weight, if there are no logits."""
    weight_main_grad_VH: torch.Tensor | None = None
    """fp32 [V/tp, H]: the buffer in which Megatron's DDP collects the weight's gradient. None:
    there are logits, or no gradient is wanted.
    """

    def zero(self) -> torch.Tensor:
        """Return an fp32 0 that depends on the model: a backward pass can start from it and changes
        nothing.
        """
        return self.hidden_NH.sum(dtype=torch.float32) * 0

    @property
    def source(self) -> Source:
        """The keyword arguments in which the kernels take these predictions."""
        if self.logits_NV is not None:
            return {"logits_TV": self.logits_NV}
        return {
            "hidden_TH": self.hidden_NH,
            "weight_VH": self.weight_VH,
            "weight_main_grad_VH": self.weight_main_grad_VH,
        }


LossFunction = Callable[[Predictions], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""Returns the loss (fp32 scalar) and the tensors that the step collects, by name."""

SUMS = "sums"
LARGEST_GAP = "largest_gap"
LOGPROBS = "logprobs"
SUPERVISED = "supervised"


@dataclass(frozen=True)
class LossContext:
    """Vocabulary, tensor-parallel group and temperature, the same for every micro-batch."""

    vocab_size: int
    """Entries without padding; padded ones are masked out of softmax and entropy."""
    tensor_group: dist.ProcessGroup | None
    temperature: float


def sft_loss(
    batch: MicroBatch,
    context: LossContext,
    batch_sequences: int,
    sequence_weights: Mapping[int, float] | None = None,
) -> LossFunction:
    """Build the SFT loss: negative logprob, mean over each completion's tokens, then over the
    batch's sequences.

    Sequences weigh alike because the two tasks differ in length: if tokens weighed alike, a reply
    would outweigh the few tokens of a label. The loss collects sums: loss, tokens.

    Args:
        sequence_weights: a factor for each sequence, by its index in the batch; None for 1.
    """

    def loss(predictions: Predictions) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if not batch.sample_indices:
            zero = predictions.zero()
            return zero, {SUMS: zero.detach().expand(2)}
        out = token_logprobs(
            targets_T=batch.target_ids_N,
            vocab_size=context.vocab_size,
            tp_group=context.tensor_group,
            **predictions.source,
        )
        weight_S = 1.0 / (batch.completion_tokens_S * batch_sequences)
        if sequence_weights:
            weight_S *= weight_S.new_tensor([sequence_weights[i] for i in batch.sample_indices])
        weight_N = weight_S.repeat_interleave(batch.completion_bounds.diff())
        total = -(out.logprob_T * weight_N).sum()
        return total, {SUMS: torch.stack([total.detach(), total.new_tensor(batch.target_ids_N.numel())])}

    return loss


def supervised_loss(batch: MicroBatch, examples: DealtBatch, context: LossContext) -> LossFunction:
    """Build the SFT loss of examples that a policy step also learns from, by their weights.

    It collects its sum under a name of its own, apart from those of the policy loss.
    """
    weights = {index: example.weight for index, example in examples.samples.items()}
    inner = sft_loss(batch, context, examples.counts.sequences, weights)

    def loss(predictions: Predictions) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        total, collected = inner(predictions)
        return total, {SUPERVISED: collected[SUMS][:1]}

    return loss


def logprob_pass(batch: MicroBatch, context: LossContext) -> LossFunction:
    """Build a pass without a loss that collects logprob_N of the completion tokens at the rollout
    temperature.
    """

    def collect(predictions: Predictions) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        zero = predictions.zero()
        if not batch.sample_indices:
            return zero, {LOGPROBS: zero.new_zeros(0)}
        out = token_logprobs(
            targets_T=batch.target_ids_N,
            vocab_size=context.vocab_size,
            temperature=context.temperature,
            tp_group=context.tensor_group,
            **predictions.source,
        )
        return zero, {LOGPROBS: out.logprob_T.detach()}

    return collect


POLICY_SUMS = ("loss", *(name for name in SUM_FIELDS if name != "sequences"))
"""Names of the sums that `policy_loss` collects, in order. Sequences are left out: several context
ranks may count the same one.
"""


def policy_loss(
    batch: MicroBatch,
    samples: Mapping[int, TrainingSample],
    context: LossContext,
    config: LossConfig,
    counts: BatchCounts,
    ref_logprob_N: torch.Tensor | None,
    old_logprob_N: torch.Tensor | None,
) -> LossFunction:
    """Build the SELF-GRPO loss (or one of its variants) of a micro-batch; see
    selfemo.kernels.grpo_loss.

    Args:
        samples: this rank's, by index in the whole batch.
        ref_logprob_N, old_logprob_N: logprobs of this rank's N tokens under the reference and the
            rollout weights; None: not used.
    """
    chosen = [samples[i] for i in batch.sample_indices]

    def loss(predictions: Predictions) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        def tensor(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=predictions.hidden_NH.device)

        if not chosen:
            zero = predictions.zero()
            nothing = zero.detach()
            return zero, {SUMS: nothing.expand(len(POLICY_SUMS)), LARGEST_GAP: nothing.expand(WIDTH)}
        rollout_N = tensor(
            [s.rollout_logprobs[place] for s, places in zip(chosen, batch.target_places) for place in places]
        )
        weight_S = tensor([s.weight for s in chosen])
        if config.aggregation == "sequence_mean":
            # The kernel divides by the tokens it sees; the mean is over the whole completion.
            weight_S *= batch.completion_bounds.diff() / batch.completion_tokens_S
        out = grpo_loss(
            targets_T=batch.target_ids_N,
            cu_seqlens=batch.completion_bounds,
            advantage_S=tensor([s.advantage for s in chosen]),
            sequence_weight_S=weight_S,
            old_logprob_T=old_logprob_N,
            ref_logprob_T=ref_logprob_N,
            rollout_logprob_T=rollout_N,
            counts=counts,
            config=config,
            vocab_size=context.vocab_size,
            tp_group=context.tensor_group,
            **predictions.source,
        )
        sums = torch.stack([out.loss.detach(), *(getattr(out.metrics, name) for name in POLICY_SUMS[1:])])
        return out.loss, {SUMS: sums, LARGEST_GAP: largest_gap(batch, out.logprob_T, rollout_N)}

    return loss
