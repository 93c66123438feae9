# mypy: allow-untyped-defs, no-check-untyped-defs
"""Computes the policy-gradient loss of packed sequences, one Triton program per sequence.

It reads a handful of numbers per token while vocab_stats and dlogits read a vocabulary, so it is
written for clarity and exact sums, not for speed: blocks of tokens, sums in a fixed order, no atomics.
A sequence-level ratio needs the sequence twice (first its mean log-ratio, then the terms) and once more
to give every token its equal share of the ratio's derivative.
"""

from __future__ import annotations

import triton
import triton.language as tl

from selfemo.kernels.backend import LOG_RATIO_BOUND, SEQUENCE_SUMS

BOUND: tl.constexpr = tl.constexpr(LOG_RATIO_BOUND)
KL_NONE, KL_K2, KL_K3 = 0, 1, 2
_NONE: tl.constexpr = tl.constexpr(KL_NONE)
_K2: tl.constexpr = tl.constexpr(KL_K2)

COLUMNS: tl.constexpr = tl.constexpr(len(SEQUENCE_SUMS))


def _column(name: str) -> tl.constexpr:
    """Return a sum's column in a row of sums_SM, as a constant that a kernel may read."""
    return tl.constexpr(SEQUENCE_SUMS.index(name))


COLUMN_LOSS: tl.constexpr = _column("loss")
COLUMN_TOKENS: tl.constexpr = _column("tokens")
COLUMN_RATIO: tl.constexpr = _column("ratio")
COLUMN_CLIPPED_LOW: tl.constexpr = _column("clipped_low")
COLUMN_CLIPPED_HIGH: tl.constexpr = _column("clipped_high")
COLUMN_DUAL_CLIPPED: tl.constexpr = _column("dual_clipped")
COLUMN_KL: tl.constexpr = _column("kl")
COLUMN_ENTROPY: tl.constexpr = _column("entropy")
COLUMN_LOGPROB: tl.constexpr = _column("logprob")
COLUMN_IMPORTANCE_WEIGHT: tl.constexpr = _column("importance_weight")
COLUMN_IMPORTANCE_TRUNCATED: tl.constexpr = _column("importance_truncated")
COLUMN_ROLLOUT_GAP: tl.constexpr = _column("rollout_gap")
COLUMN_ROLLOUT_GAP_MAX: tl.constexpr = _column("rollout_gap_max")


@triton.jit
def _bounded(x):
    return tl.minimum(tl.maximum(x, -BOUND), BOUND)


@triton.jit
def _log_ratio(logprob_T, old_T, token, keep, HAS_OLD: tl.constexpr):
    """Compute logprob - old of the kept tokens; exactly 0 if this pass is its own old policy."""
    if HAS_OLD:
        log_ratio = tl.load(logprob_T + token, mask=keep, other=0.0) - tl.load(
            old_T + token, mask=keep, other=0.0
        )
    else:
        log_ratio = tl.zeros(token.shape, tl.float32)
    return log_ratio


@triton.jit
def _kl(gap, KL: tl.constexpr):
    """Compute the KL estimate and its derivative in logprob; gap = ref - logprob.

    Near gap = 0 a series replaces exp(gap) - 1, which cancels.
    """
    if KL == _K2:
        kl = 0.5 * gap * gap
        dkl = -gap
    else:
        x = _bounded(gap)
        tail = x * x * (0.5 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120 + x * (1.0 / 720)))))
        kl = tl.where(tl.abs(x) < 0.125, tail, tl.exp(x) - x - 1.0)
        dkl = tl.where(tl.abs(gap) <= BOUND, -(kl + x), 0.0)
    return kl, dkl


@triton.jit
def sequence_loss_kernel(
    logprob_T,
    entropy_T,
    old_T,
    ref_T,
    rollout_T,
    mask_T,
    cu_seqlens,
    advantage_S,
    token_weight_S,
    tokens_S,
    dlogprob_T,
    dentropy_T,
    sums_SM,
    clip_low,
    clip_high,
    dual_clip,
    kl_beta,
    importance_cap,
    entropy_weight,
    SEQUENCE_RATIO: tl.constexpr,
    KL: tl.constexpr,
    HAS_OLD: tl.constexpr,
    HAS_ROLLOUT: tl.constexpr,
    HAS_CAP: tl.constexpr,
    HAS_DUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute, per token, the derivative of the loss in log-probability and entropy; per sequence, the
    sums named in SEQUENCE_SUMS.
    """
    sequence = tl.program_id(0).to(tl.int64)
    begin = tl.load(cu_seqlens + sequence)
    end = tl.load(cu_seqlens + sequence + 1)
    advantage = tl.load(advantage_S + sequence)
    weight = tl.load(token_weight_S + sequence)
    share = 1.0 / tl.maximum(tl.load(tokens_S + sequence), 1.0)

    mean_log_ratio = 0.0
    if SEQUENCE_RATIO:
        total_B = tl.zeros([BLOCK], tl.float32)
        for start in range(begin, end, BLOCK):
            token = start + tl.arange(0, BLOCK)
            keep = tl.load(mask_T + token, mask=token < end, other=0) != 0
            total_B += _log_ratio(logprob_T, old_T, token, keep, HAS_OLD)
        mean_log_ratio = tl.sum(total_B, 0) * share

    # Each lane keeps its own sums; they are reduced once, after the last block.
    loss_B = tl.zeros([BLOCK], tl.float32)
    tokens_B = tl.zeros([BLOCK], tl.float32)
    ratios_B = tl.zeros([BLOCK], tl.float32)
    clipped_low_B = tl.zeros([BLOCK], tl.float32)
    clipped_high_B = tl.zeros([BLOCK], tl.float32)
    dual_clipped_B = tl.zeros([BLOCK], tl.float32)
    kls_B = tl.zeros([BLOCK], tl.float32)
    entropies_B = tl.zeros([BLOCK], tl.float32)
    logprobs_B = tl.zeros([BLOCK], tl.float32)
    importances_B = tl.zeros([BLOCK], tl.float32)
    truncated_B = tl.zeros([BLOCK], tl.float32)
    gaps_B = tl.zeros([BLOCK], tl.float32)
    largest_gap_B = tl.zeros([BLOCK], tl.float32)
    dratio_B = tl.zeros([BLOCK], tl.float32)  # d policy / d (sequence log-ratio)
    for start in range(begin, end, BLOCK):
        token = start + tl.arange(0, BLOCK)
        inside = token < end
        keep = tl.load(mask_T + token, mask=inside, other=0) != 0
        one = tl.where(keep, 1.0, 0.0)
        logprob = tl.load(logprob_T + token, mask=keep, other=0.0)
        entropy = tl.load(entropy_T + token, mask=keep, other=0.0)

        if SEQUENCE_RATIO:
            log_ratio = tl.zeros([BLOCK], tl.float32) + mean_log_ratio
        else:
            log_ratio = _log_ratio(logprob_T, old_T, token, keep, HAS_OLD)
        ratio = tl.exp(_bounded(log_ratio))
        free = -advantage * ratio
        held = -advantage * tl.minimum(tl.maximum(ratio, 1.0 - clip_low), 1.0 + clip_high)
        policy = tl.maximum(free, held)
        # d ratio / d log-ratio = ratio
        dpolicy = tl.where(free >= held, tl.where(tl.abs(log_ratio) <= BOUND, free, 0.0), 0.0)
        if HAS_DUAL:
            ceiling = tl.where(advantage < 0.0, -advantage * dual_clip, float("inf"))
            dual_clipped_B += tl.where(ceiling < policy, one, 0.0)
            dpolicy = tl.where(ceiling < policy, 0.0, dpolicy)
            policy = tl.minimum(policy, ceiling)

        importance = one
        if HAS_ROLLOUT:
            if HAS_OLD:
                old = tl.load(old_T + token, mask=keep, other=0.0)
            else:
                old = logprob
            gap = old - tl.load(rollout_T + token, mask=keep, other=0.0)
            gaps_B += tl.abs(gap)
            largest_gap_B = tl.maximum(largest_gap_B, tl.abs(gap))
            if HAS_CAP:
                importance = tl.exp(_bounded(gap))
                truncated_B += tl.where(importance > importance_cap, one, 0.0)
                importance = tl.minimum(importance, importance_cap) * one

        term = policy * importance - entropy_weight * entropy
        dkl = tl.zeros([BLOCK], tl.float32)
        if KL != _NONE:
            kl, dkl = _kl(tl.load(ref_T + token, mask=keep, other=0.0) - logprob, KL)
            term += kl_beta * kl
            kls_B += kl * one

        dpolicy = tl.where(keep, dpolicy * importance * weight, 0.0)
        dlogprob = tl.where(keep, kl_beta * weight * dkl, 0.0)
        if SEQUENCE_RATIO:
            dratio_B += dpolicy
        else:
            dlogprob += dpolicy
        tl.store(dlogprob_T + token, dlogprob, mask=inside)
        tl.store(dentropy_T + token, -entropy_weight * weight * one, mask=inside)

        loss_B += term * one
        tokens_B += one
        ratios_B += ratio * one
        if advantage < 0.0:
            clipped_low_B += tl.where(ratio < 1.0 - clip_low, one, 0.0)
        if advantage > 0.0:
            clipped_high_B += tl.where(ratio > 1.0 + clip_high, one, 0.0)
        entropies_B += entropy
        logprobs_B += logprob
        importances_B += importance

    if SEQUENCE_RATIO:
        dshare = tl.sum(dratio_B, 0) * share
        tl.debug_barrier()  # the stores above are read again below
        for start in range(begin, end, BLOCK):
            token = start + tl.arange(0, BLOCK)
            keep = tl.load(mask_T + token, mask=token < end, other=0) != 0
            dlogprob = tl.load(dlogprob_T + token, mask=keep, other=0.0) + dshare
            tl.store(dlogprob_T + token, dlogprob, mask=keep)

    out = sums_SM + sequence * COLUMNS
    tl.store(out + COLUMN_LOSS, tl.sum(loss_B, 0) * weight)
    tl.store(out + COLUMN_TOKENS, tl.sum(tokens_B, 0))
    tl.store(out + COLUMN_RATIO, tl.sum(ratios_B, 0))
    tl.store(out + COLUMN_CLIPPED_LOW, tl.sum(clipped_low_B, 0))
    tl.store(out + COLUMN_CLIPPED_HIGH, tl.sum(clipped_high_B, 0))
    tl.store(out + COLUMN_DUAL_CLIPPED, tl.sum(dual_clipped_B, 0))
    tl.store(out + COLUMN_KL, tl.sum(kls_B, 0))
    tl.store(out + COLUMN_ENTROPY, tl.sum(entropies_B, 0))
    tl.store(out + COLUMN_LOGPROB, tl.sum(logprobs_B, 0))
    tl.store(out + COLUMN_IMPORTANCE_WEIGHT, tl.sum(importances_B, 0))
    tl.store(out + COLUMN_IMPORTANCE_TRUNCATED, tl.sum(truncated_B, 0))
    tl.store(out + COLUMN_ROLLOUT_GAP, tl.sum(gaps_B, 0))
    tl.store(out + COLUMN_ROLLOUT_GAP_MAX, tl.max(largest_gap_B, 0))
