"""Compute in fp64 the values that the kernels must match, in the plainest form, differentiated by
autograd.

Nothing here is shared with the implementation: no chunks, no shards, no derivatives by hand. Only
tests import it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from selfemo.kernels import AdvantageConfig, BatchCounts, LossConfig


@dataclass(frozen=True)
class Truth:
    loss: Tensor
    dlogits_TV: Tensor
    logprob_T: Tensor
    entropy_T: Tensor
    kl: float
    ratio_T: Tensor


def distribution(
    logits_TV: Tensor, targets_T: Tensor, temperature: float, vocab_size: int | None
) -> tuple[Tensor, Tensor]:
    """Compute log p(target) and entropy."""
    log_p = torch.log_softmax(logits_TV[:, :vocab_size] / temperature, -1)
    return log_p.gather(1, targets_T.long()[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def advantages(rewards_SC: Tensor, group_ptr: Tensor, weights_C: Tensor, config: AdvantageConfig) -> Tensor:
    """Compute advantages, fp64 [S], ungated."""
    rewards_SC, weights_C = rewards_SC.double(), weights_C.double()
    columns = [rewards_SC @ weights_C] if not config.per_component else list(rewards_SC.unbind(1))
    factors = [1.0] if not config.per_component else weights_C.tolist()
    result = torch.zeros(rewards_SC.shape[0], dtype=torch.float64)
    for begin, end in zip(group_ptr.tolist(), group_ptr.tolist()[1:]):
        for column, factor in zip(columns, factors):
            r = column[begin:end]
            n = end - begin
            if n == 1 or bool((r == r[0]).all()):
                continue
            if config.normalise == "std":
                result[begin:end] += factor * (r - r.mean()) / (r.std() + config.epsilon)
            elif config.normalise == "leave_one_out":
                result[begin:end] += factor * (r - (r.sum() - r) / (n - 1))
            else:
                result[begin:end] += factor * (r - r.mean())
    return result


def loss(
    logits_TV: Tensor,
    targets_T: Tensor,
    cu_seqlens: Tensor,
    advantage_S: Tensor,
    config: LossConfig,
    counts: BatchCounts,
    *,
    weight_S: Tensor | None = None,
    old_T: Tensor | None = None,
    ref_T: Tensor | None = None,
    rollout_T: Tensor | None = None,
    mask_T: Tensor | None = None,
    vocab_size: int | None = None,
) -> Truth:
    """Compute the loss sequence by sequence, token by token."""
    logits_TV = logits_TV.detach().double().requires_grad_()
    logprob_T, entropy_T = distribution(logits_TV, targets_T, config.temperature, vocab_size)
    mask_T = torch.ones_like(targets_T, dtype=torch.bool) if mask_T is None else mask_T
    total, kl_total, ratios = logits_TV.new_zeros(()), 0.0, torch.zeros_like(logprob_T.detach())
    for s, (begin, end) in enumerate(zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:])):
        keep = [t for t in range(begin, end) if bool(mask_T[t])]
        if not keep:
            continue
        logp = logprob_T[keep]
        old = logp.detach() if old_T is None else old_T[keep].double()
        log_ratio = logp - old
        if config.ratio_level == "sequence":
            log_ratio = log_ratio.mean().expand_as(log_ratio)
        ratio = log_ratio.exp()
        advantage = float(advantage_S[s])
        policy = torch.maximum(
            -advantage * ratio, -advantage * ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
        )
        if config.dual_clip is not None and advantage < 0:
            policy = policy.clamp(max=-advantage * config.dual_clip)
        if rollout_T is not None and config.truncated_importance_cap is not None:
            policy = policy * (old - rollout_T[keep].double()).exp().clamp(
                max=config.truncated_importance_cap
            )
        token = policy - config.entropy_weight * entropy_T[keep]
        if ref_T is not None:
            d = ref_T[keep].double() - logp
            kl = {"k2": d**2 / 2, "k3": d.exp() - d - 1}[config.kl_estimator]
            token = token + config.kl_beta * kl
            kl_total += float(kl.detach().sum())
        divisor = {
            "sequence_mean": counts.sequences * len(keep),
            "token_mean": counts.tokens,
            "sequence_sum": counts.sequences * (config.max_length or math.nan),
        }[config.aggregation]
        total = total + token.sum() / divisor * (1.0 if weight_S is None else float(weight_S[s]))
        ratios[keep] = ratio.detach()
    if total.requires_grad:
        total.backward()
    gradient = torch.zeros_like(logits_TV) if logits_TV.grad is None else logits_TV.grad
    return Truth(total.detach(), gradient, logprob_T.detach(), entropy_T.detach(), kl_total, ratios)


def worst(got: Tensor, expected: Tensor) -> float:
    """Return the largest error relative to max(1, |expected|)."""
    expected = expected.double()
    return float(((got.double() - expected).abs() / expected.abs().clamp(min=1.0)).max())


def worst_of_scale(got: Tensor, expected: Tensor) -> float:
    """Return the largest error relative to the largest expected magnitude: for gradients, which
    scale with the loss.
    """
    expected = expected.double()
    return float((got.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
