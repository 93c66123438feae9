"""Computes the loss of SELF-GRPO and its relatives, from logits or hidden states to gradients, in one call.

Forward: `vocab_stats` reduces each row of logits to log-probability and entropy, `sequence_loss` turns
those into the loss and its derivative in each of them. Backward: `dlogits_` writes the gradient over
the logits. The loss is a plain sum of weighted token terms; the weights hold the counts of the whole
optimizer step, so that losses of micro-batches and data-parallel ranks add up to the whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from selfemo.kernels.backend import MAXIMUM_COLUMN, SEQUENCE_SUMS, Impl, PolicyBatch
from selfemo.kernels.checks import (
    ValueChecks,
    check_finite,
    check_main_grad,
    check_mask,
    check_partition,
    check_targets,
    check_vector,
)
from selfemo.kernels.config import BatchCounts, LossConfig
from selfemo.kernels.fused_linear import (
    DEFAULT_CHUNK_TOKENS,
    Head,
    LinearGradients,
    chunk_stats,
    linear_stats,
)
from selfemo.kernels.logprobs import Distribution, distribution, softmax_stats
from selfemo.kernels.results import SUM_FIELDS, LossMetrics, LossResult
from selfemo.kernels.vocab_parallel import SoftmaxStats


def grpo_loss(
    logits_TV: Tensor | None = None,
    targets_T: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    hidden_TH: Tensor | None = None,
    weight_VH: Tensor | None = None,
    config: LossConfig,
    advantage_S: Tensor,
    sequence_weight_S: Tensor | None = None,
    old_logprob_T: Tensor | None = None,
    ref_logprob_T: Tensor | None = None,
    rollout_logprob_T: Tensor | None = None,
    mask_T: Tensor | None = None,
    counts: BatchCounts | None = None,
    vocab_size: int | None = None,
    tp_group: ProcessGroup | None = None,
    impl: Impl = "auto",
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    weight_main_grad_VH: Tensor | None = None,
    check_values: bool = True,
) -> LossResult:
    """Compute the policy-gradient loss of S packed sequences of T tokens in all.

    Give logits, whose storage the backward pass overwrites with their gradient, or hidden states and
    the output weight, whose gradients are computed in the forward pass chunk by chunk. Advantages are
    those of the whole rollout batch (`group_advantages`). Backward may run once, and honours the
    incoming gradient.

    Args:
        logits_TV: this rank's vocabulary shard [T, V / tp], any float dtype, rows contiguous.
        targets_T: int32 or int64 [T], global token ids; row t of the logits predicts targets_T[t].
        cu_seqlens: int32 or int64 [S + 1], borders of the sequences in T. None is not allowed; one
            sequence is [0, T].
        hidden_TH: [T, H], instead of logits; whole (not split) under tensor parallelism.
        weight_VH: [V / tp, H], this rank's rows of the output weight; same dtype as `hidden_TH`.
        config: the loss and its settings.
        advantage_S: float [S], one per sequence.
        sequence_weight_S: float [S], multiplies all of a sequence's loss (group gates and weights);
            None is 1.
        old_logprob_T: float [T], logprob under the policy that the ratio is taken against. None: this
            pass's own logprob, detached, so the ratio is exactly 1 and only its gradient counts.
        ref_logprob_T: float [T], logprob under the reference policy; needed if config.kl_beta > 0.
        rollout_logprob_T: float [T], logprob that the rollout engine reported for its sample.
        mask_T: bool [T], completion tokens. Others are neither read nor differentiated. None is all true.
        counts: sizes of the whole optimizer step. None takes this call's own, which is right for a
            single micro-batch only.
        vocab_size: size of the real vocabulary; columns with a global id at or above it are padding.
        tp_group: tensor-parallel process group; None if the vocabulary is whole.
        impl: "auto", "triton" or "torch".
        chunk_tokens: tokens per chunk with hidden states.
        weight_main_grad_VH: fp32 [V / tp, H]; the forward pass adds the weight's gradient here, chunk
            by chunk, and backward returns none. Backward must then run, on the loss as it is: a
            gradient other than 1 raises RuntimeError.
        check_values: read values from the device to check them (one synchronisation); False skips the
            checks that need that.

    Returns:
        The loss (fp32 scalar), detached logprobs and entropies, and metrics as sums.

    Raises:
        ValueError: names the argument and the offending index, before anything is written.

    Source: docs/kernels.md has the formulas and their derivatives, `LossConfig.preset` the papers.
    """
    source = distribution(logits_TV, hidden_TH, weight_VH, vocab_size, config.temperature, tp_group, impl)
    if targets_T is None or cu_seqlens is None:
        missing = "targets_T" if targets_T is None else "cu_seqlens"
        raise ValueError(f"{missing} is missing: expected an integer tensor")
    if config.kl_beta > 0 and ref_logprob_T is None:
        raise ValueError(f"ref_logprob_T is missing: config.kl_beta is {config.kl_beta}")
    references = {
        "old_logprob_T": old_logprob_T,
        "ref_logprob_T": ref_logprob_T,
        "rollout_logprob_T": rollout_logprob_T,
    }
    _check_tokens(source, targets_T, cu_seqlens, mask_T, references, check_values)
    check_main_grad(weight_main_grad_VH, weight_VH)
    sequences = cu_seqlens.numel() - 1
    _check_sequences(
        source, sequences, {"advantage_S": advantage_S, "sequence_weight_S": sequence_weight_S}, check_values
    )

    targets_T, cu_seqlens = targets_T.contiguous(), cu_seqlens.long()
    mask_T = torch.ones_like(targets_T, dtype=torch.bool) if mask_T is None else mask_T.contiguous()
    tokens_S = torch.segment_reduce(mask_T.float(), "sum", lengths=cu_seqlens.diff(), unsafe=True)
    old_T, ref_T, rollout_T = (
        None if x is None else x.detach().float().contiguous() for x in references.values()
    )
    token_weight_S = _token_weights(tokens_S, sequence_weight_S, counts, config)
    advantage_S = advantage_S.detach().float().contiguous()
    batch = PolicyBatch(old_T, ref_T, rollout_T, mask_T, cu_seqlens, advantage_S, token_weight_S, tokens_S)
    if hidden_TH is None or weight_VH is None:
        loss, logprob_T, entropy_T, sums_SM = _FromLogits.apply(logits_TV, targets_T, batch, config, source)
    else:
        head = Head(source.backend, source.shard, source.inv_temperature, chunk_tokens, weight_main_grad_VH)
        needed = (
            (hidden_TH.requires_grad, weight_VH.requires_grad) if torch.is_grad_enabled() else (False, False)
        )
        loss, logprob_T, entropy_T, sums_SM = _FromHidden.apply(
            hidden_TH, weight_VH, targets_T, batch, config, head, needed
        )
    return LossResult(loss, logprob_T, entropy_T, _metrics(sums_SM))


def _token_weights(
    tokens_S: Tensor, sequence_weight_S: Tensor | None, counts: BatchCounts | None, config: LossConfig
) -> Tensor:
    """Compute the weight of each of a sequence's tokens, fp32 [S].

    It holds global counts only: the loss must not depend on how a batch is split.
    """
    sequences: float | Tensor = (
        (tokens_S > 0).sum().clamp(min=1) if counts is None else max(counts.sequences, 1)
    )
    tokens: float | Tensor = tokens_S.sum().clamp(min=1) if counts is None else max(counts.tokens, 1)
    ones_S = torch.ones_like(tokens_S)
    if config.aggregation == "token_mean":
        weight_S = ones_S / tokens
    elif config.aggregation == "sequence_mean":
        weight_S = ones_S / (sequences * tokens_S.clamp(min=1))
    else:
        assert config.max_length is not None  # LossConfig refuses this combination
        weight_S = ones_S / (sequences * config.max_length)
    return weight_S if sequence_weight_S is None else weight_S * sequence_weight_S.detach().float()


def _metrics(sums_SM: Tensor) -> LossMetrics:
    named = dict(zip(SEQUENCE_SUMS, sums_SM.unbind(1)))
    sums = {name: named[name].sum() for name in SUM_FIELDS if name != "sequences"}
    return LossMetrics(
        sequences=(named["tokens"] > 0).float().sum(), **sums, rollout_gap_max=named["rollout_gap_max"].max()
    )


class _FromLogits(torch.autograd.Function):
    """Runs `vocab_stats` and `sequence_loss` forward, `dlogits_` in place backward."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_TV: Tensor,
        targets_T: Tensor,
        batch: PolicyBatch,
        config: LossConfig,
        source: Distribution,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        softmax = softmax_stats(logits_TV, targets_T, batch.mask_T, source)
        result = source.backend.sequence_loss(softmax.logprob_T, softmax.entropy_T, batch, config)
        ctx.save_for_backward(logits_TV, targets_T, result.dlogprob_T, result.dentropy_T, *softmax.tensors())
        ctx.shard, ctx.inv_temperature, ctx.backend = source.shard, source.inv_temperature, source.backend
        ctx.mark_non_differentiable(softmax.logprob_T, softmax.entropy_T, result.sums_SM)
        return _total(result.sums_SM), softmax.logprob_T, softmax.entropy_T, result.sums_SM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits_TV, targets_T, dlogprob_T, dentropy_T, *stats = ctx.saved_tensors
        ctx.backend.dlogits_(
            logits_TV,
            targets_T,
            SoftmaxStats(*stats),
            dlogprob_T * dloss,
            dentropy_T * dloss,
            ctx.shard,
            ctx.inv_temperature,
        )
        return logits_TV.detach(), None, None, None, None


class _FromHidden(torch.autograd.Function):
    """Computes loss and gradients chunk by chunk in the forward pass; backward only scales the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        targets_T: Tensor,
        batch: PolicyBatch,
        config: LossConfig,
        head: Head,
        needed: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.gradients = LinearGradients(head, hidden_TH, weight_VH, needed)
        if config.ratio_level == "sequence":
            # a token's derivative depends on the sequence's other tokens, so all are read first
            softmax = linear_stats(head, hidden_TH, weight_VH, targets_T, batch.mask_T)
            logprob_T, entropy_T = softmax.logprob_T, softmax.entropy_T
            result = head.backend.sequence_loss(logprob_T, entropy_T, batch, config)
            sums_SM = result.sums_SM
            if any(needed):
                ctx.gradients.recompute(targets_T, softmax, result.dlogprob_T, result.dentropy_T)
        else:
            logprob_T, entropy_T, sums_SM = _one_pass(ctx.gradients, targets_T, batch, config)
        ctx.mark_non_differentiable(logprob_T, entropy_T, sums_SM)
        return _total(sums_SM), logprob_T, entropy_T, sums_SM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "grpo_loss: backward ran a second time, but its gradients were handed over the first time"
            )
        gradients, ctx.gradients = ctx.gradients, None
        return *gradients.finish(dloss), None, None, None, None, None


def _one_pass(
    gradients: LinearGradients, targets_T: Tensor, batch: PolicyBatch, config: LossConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute log-probabilities, entropies and sums of a token-level loss.

    `gradients` receives each chunk's share on the way.
    """
    backend = gradients.head.backend
    logprob_T, entropy_T = (
        torch.zeros(len(targets_T), dtype=torch.float32, device=targets_T.device) for _ in range(2)
    )
    sums_SM = torch.zeros(len(batch.advantage_S), len(SEQUENCE_SUMS), device=targets_T.device)
    keep_exp = gradients.can_keep_exp(config.entropy_weight)
    for chunk in gradients.chunks(batch.mask_T):
        rows = chunk.rows
        softmax, factor_c = chunk_stats(gradients.head, chunk, targets_T, keep_exp)
        result = backend.sequence_loss(softmax.logprob_T, softmax.entropy_T, batch.chunk(rows), config)
        if keep_exp:
            gradients.add_exp(chunk, targets_T[rows], factor_c, result.dlogprob_T)
        else:
            gradients.add(chunk, targets_T[rows], softmax, result.dlogprob_T, result.dentropy_T)
        logprob_T[rows], entropy_T[rows] = softmax.logprob_T, softmax.entropy_T
        largest_S = torch.maximum(sums_SM[:, MAXIMUM_COLUMN], result.sums_SM[:, MAXIMUM_COLUMN])
        sums_SM += result.sums_SM
        sums_SM[:, MAXIMUM_COLUMN] = largest_S
    return logprob_T, entropy_T, sums_SM


def _total(sums_SM: Tensor) -> Tensor:
    return sums_SM[:, SEQUENCE_SUMS.index("loss")].sum()


def _check_tokens(
    source: Distribution,
    targets_T: Tensor,
    cu_seqlens: Tensor,
    mask_T: Tensor | None,
    references: dict[str, Tensor | None],
    check_values: bool,
) -> None:
    checks = ValueChecks()
    check_targets(checks, targets_T, source.tokens, source.vocab_size, source.device)
    check_partition(checks, "cu_seqlens", cu_seqlens, source.tokens, "sequence", source.device)
    check_mask(mask_T, source.tokens, source.device)
    for name, tensor in references.items():
        if tensor is not None:
            check_vector(name, tensor, source.tokens, source.device)
            check_finite(checks, name, tensor if mask_T is None else tensor.where(mask_T, 0.0))
    if check_values:
        checks.raise_first()


def _check_sequences(
    source: Distribution, sequences: int, given: dict[str, Tensor | None], check_values: bool
) -> None:
    checks = ValueChecks()
    for name, tensor in given.items():
        if tensor is not None:
            check_vector(name, tensor, sequences, source.device)
            check_finite(checks, name, tensor)
    if check_values:
        checks.raise_first()
