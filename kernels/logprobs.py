"""Computes log-probability and entropy of sampled tokens, differentiably.

The supervised loss, old and reference logprobs and evaluation use it. From logits, the backward pass
writes the gradient over the logits themselves: nothing of size [T, V] is ever allocated. From hidden
states and the output weight, not even the logits exist: they are made in chunks of tokens, and made
again in the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from selfemo.kernels.backend import Backend, Impl
from selfemo.kernels.checks import (
    ValueChecks,
    check_logits,
    check_main_grad,
    check_mask,
    check_targets,
    require_device,
    require_shape,
)
from selfemo.kernels.dispatch import choose
from selfemo.kernels.fused_linear import DEFAULT_CHUNK_TOKENS, Head, LinearGradients, linear_stats
from selfemo.kernels.results import TokenLogprobs
from selfemo.kernels.vocab_parallel import SoftmaxStats, VocabShard, combine, vocab_shard


@dataclass(frozen=True)
class Distribution:
    """The source of the logits, and how they become probabilities. Both public losses share it."""

    logits_TV: Tensor | None
    hidden_TH: Tensor | None
    weight_VH: Tensor | None
    tokens: int
    vocab_size: int
    shard: VocabShard
    inv_temperature: float
    backend: Backend
    device: torch.device


def distribution(
    logits_TV: Tensor | None,
    hidden_TH: Tensor | None,
    weight_VH: Tensor | None,
    vocab_size: int | None,
    temperature: float,
    tp_group: ProcessGroup | None,
    impl: Impl,
) -> Distribution:
    """Check the source of the logits, and choose shard and backend. Reads no values."""
    if (logits_TV is None) == (hidden_TH is None) or (hidden_TH is None) != (weight_VH is None):
        raise ValueError(
            "logits_TV or both hidden_TH and weight_VH are needed: give exactly one of the two sources"
        )
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}: expected a finite number above 0")
    if logits_TV is not None:
        check_logits("logits_TV", logits_TV)
        (tokens, columns), device = logits_TV.shape, logits_TV.device
    else:
        assert hidden_TH is not None  # checked above
        assert weight_VH is not None
        check_logits("hidden_TH", hidden_TH)
        check_logits("weight_VH", weight_VH)
        require_shape("weight_VH", weight_VH, (None, hidden_TH.shape[1]))
        require_device("weight_VH", weight_VH, hidden_TH.device)
        if weight_VH.dtype != hidden_TH.dtype:
            raise ValueError(
                f"weight_VH is {weight_VH.dtype}: expected {hidden_TH.dtype}, the dtype of hidden_TH"
            )
        tokens, columns, device = hidden_TH.shape[0], weight_VH.shape[0], hidden_TH.device
    shard = vocab_shard(columns, vocab_size, tp_group)
    total = vocab_size or columns * (tp_group.size() if tp_group is not None else 1)
    return Distribution(
        logits_TV, hidden_TH, weight_VH, tokens, total, shard, 1 / temperature, choose(impl, device), device
    )


def token_logprobs(
    logits_TV: Tensor | None = None,
    targets_T: Tensor | None = None,
    *,
    hidden_TH: Tensor | None = None,
    weight_VH: Tensor | None = None,
    mask_T: Tensor | None = None,
    vocab_size: int | None = None,
    temperature: float = 1.0,
    tp_group: ProcessGroup | None = None,
    impl: Impl = "auto",
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS,
    weight_main_grad_VH: Tensor | None = None,
    check_values: bool = True,
) -> TokenLogprobs:
    """Compute log p(target) and entropy per token, differentiable in the logits, or in hidden states
    and weight.

    The backward pass overwrites `logits_TV` with its gradient: the caller may not read the logits
    afterwards, nor run backward twice (autograd then raises). Under tensor parallelism every rank calls
    this with its shard and gets the same result.

    Args:
        logits_TV: this rank's vocabulary shard [T, V / tp], any float dtype, rows contiguous.
        targets_T: int32 or int64 [T], global token ids; row t of the logits predicts targets_T[t].
        hidden_TH: [T, H], instead of logits; whole (not split) under tensor parallelism.
        weight_VH: [V / tp, H], this rank's rows of the output weight; same dtype as `hidden_TH`.
        mask_T: bool [T]; if false, the row is neither read nor differentiated, and its results are 0.
            None is all true.
        vocab_size: size of the real vocabulary; columns with a global id at or above it are padding.
            None: all are real.
        temperature: logits are divided by it.
        tp_group: tensor-parallel process group; None if the vocabulary is whole.
        impl: "auto", "triton" or "torch".
        chunk_tokens: tokens per chunk with hidden states; a chunk's logits are all that ever exists.
        weight_main_grad_VH: fp32 [V / tp, H]; the weight's gradient is added here instead of being
            returned to autograd.
        check_values: check that targets are inside the vocabulary, which reads the device.

    Raises:
        ValueError: names the argument and the offending index, before anything is written.

    Source: Milakov & Gimelshein 2018 (arXiv 1805.02867) for the running maximum; docs/kernels.md for
    the derivatives.
    """
    source = distribution(logits_TV, hidden_TH, weight_VH, vocab_size, temperature, tp_group, impl)
    if targets_T is None:
        raise ValueError("targets_T is missing: expected the token id that each row predicts")
    check_main_grad(weight_main_grad_VH, weight_VH)
    checks = ValueChecks()
    check_targets(checks, targets_T, source.tokens, source.vocab_size, source.device)
    check_mask(mask_T, source.tokens, source.device)
    if check_values:
        checks.raise_first()
    targets_T, mask_T = targets_T.contiguous(), None if mask_T is None else mask_T.contiguous()
    if logits_TV is not None:
        return TokenLogprobs(*_FromLogits.apply(logits_TV, targets_T, mask_T, source))
    head = Head(source.backend, source.shard, source.inv_temperature, chunk_tokens, weight_main_grad_VH)
    return TokenLogprobs(*_FromHidden.apply(hidden_TH, weight_VH, targets_T, mask_T, head))


def softmax_stats(
    logits_TV: Tensor, targets_T: Tensor, mask_T: Tensor | None, source: Distribution
) -> SoftmaxStats:
    """Run `vocab_stats` and reduce it over ranks. Logprob and entropy are 0 for masked tokens."""
    stats = source.backend.vocab_stats(logits_TV, targets_T, mask_T, source.shard, source.inv_temperature)
    return combine(stats, targets_T, mask_T, source.shard, source.inv_temperature)


class _FromLogits(torch.autograd.Function):
    """Runs `vocab_stats` forward and `dlogits_` in place backward."""

    @staticmethod
    def forward(
        ctx: Any, logits_TV: Tensor, targets_T: Tensor, mask_T: Tensor | None, source: Distribution
    ) -> tuple[Tensor, Tensor]:
        softmax = softmax_stats(logits_TV, targets_T, mask_T, source)
        ctx.save_for_backward(logits_TV, targets_T, mask_T, *softmax.tensors())
        ctx.shard, ctx.inv_temperature, ctx.backend = source.shard, source.inv_temperature, source.backend
        return softmax.logprob_T, softmax.entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dlogprob_T: Tensor, dentropy_T: Tensor) -> tuple[Tensor, None, None, None]:
        logits_TV, targets_T, mask_T, *stats = ctx.saved_tensors
        dlogprob_T, dentropy_T = _masked(dlogprob_T, mask_T), _masked(dentropy_T, mask_T)
        ctx.backend.dlogits_(
            logits_TV, targets_T, SoftmaxStats(*stats), dlogprob_T, dentropy_T, ctx.shard, ctx.inv_temperature
        )
        return logits_TV.detach(), None, None, None


class _FromHidden(torch.autograd.Function):
    """Makes each chunk's logits in the forward pass and again in the backward pass.

    That costs 8 T H V operations, and never holds more than one chunk of logits.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, mask_T: Tensor | None, head: Head
    ) -> tuple[Tensor, Tensor]:
        softmax = linear_stats(head, hidden_TH, weight_VH, targets_T, mask_T)
        ctx.save_for_backward(hidden_TH, weight_VH, targets_T, mask_T, *softmax.tensors())
        ctx.head = head
        return softmax.logprob_T, softmax.entropy_T

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dlogprob_T: Tensor, dentropy_T: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_TH, weight_VH, targets_T, mask_T, *stats = ctx.saved_tensors
        gradients = LinearGradients(ctx.head, hidden_TH, weight_VH, ctx.needs_input_grad[:2])
        dlogprob_T, dentropy_T = _masked(dlogprob_T, mask_T), _masked(dentropy_T, mask_T)
        gradients.recompute(targets_T, SoftmaxStats(*stats), dlogprob_T, dentropy_T)
        return *gradients.finish(), None, None, None


def _masked(derivative_T: Tensor, mask_T: Tensor | None) -> Tensor:
    derivative_T = derivative_T.float()
    return derivative_T.contiguous() if mask_T is None else derivative_T.where(mask_T, 0.0)
