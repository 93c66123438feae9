# mypy: allow-untyped-defs, no-check-untyped-defs
"""The two Triton kernels that touch the logits: vocab_stats and dlogits.

Both run one program per row and walk along the vocabulary in blocks, in fp32. vocab_stats reads every
logit once, dlogits reads and writes it once: with bf16 logits that is 2 bytes forward and 4 backward,
the least an exact softmax over an existing matrix can move.
Rows are found with 64-bit offsets (8,192 tokens of 151,936 logits pass 2^30), nothing about length or
vocabulary is a compile-time constant, and no program writes where another does, so results repeat bit
for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from selfemo.kernels.vocab_parallel import LOWEST

START: tl.constexpr = tl.constexpr(LOWEST)


@triton.jit
def vocab_stats_kernel(
    logits_TV,
    targets_T,
    live_T,
    max_T,
    sum_T,
    weighted_T,
    target_T,
    row_stride,
    columns,
    real_columns,
    vocab_start,
    inv_temperature,
    HAS_LIVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Reduce each row to its largest logit, sum of exp(d), sum of exp(d) d, and the target's logit.

    d = (logit - largest) / temperature. `columns` bounds the loads and `real_columns` the softmax: a
    padded width is a multiple of 16, a real vocabulary need not be, and only a bound that is known to
    be one lets the loads be 128 bits wide.
    """
    row = tl.program_id(0).to(tl.int64)
    if HAS_LIVE and tl.load(live_T + row) == 0:
        tl.store(max_T + row, 0.0)
        tl.store(sum_T + row, 1.0)
        tl.store(weighted_T + row, 0.0)
        tl.store(target_T + row, 0.0)
    else:
        first = logits_TV + row * row_stride
        largest = START
        sum_B = tl.zeros([BLOCK], tl.float32)
        weighted_B = tl.zeros([BLOCK], tl.float32)
        for begin in range(0, real_columns, BLOCK):
            column_B = begin + tl.arange(0, BLOCK)
            x_B = tl.load(first + column_B, mask=column_B < columns, other=float("-inf")).to(tl.float32)
            x_B = tl.where(column_B < real_columns, x_B, float("-inf"))
            grown = tl.maximum(largest, tl.max(x_B, 0))
            shift = (largest - grown) * inv_temperature
            scale = tl.exp(shift)
            d_B = (x_B - grown) * inv_temperature
            e_B = tl.exp(d_B)
            # Lanes keep their own sums, so that the maximum is the only reduction across the block in
            # this loop. The weighted sum is about the running maximum: moving it by `shift` adds
            # shift * sum, then both are rescaled.
            weighted_B = scale * (weighted_B + shift * sum_B) + e_B * tl.where(e_B > 0.0, d_B, 0.0)
            sum_B = scale * sum_B + e_B
            largest = grown
        column = tl.load(targets_T + row) - vocab_start
        held = (column >= 0) & (column < real_columns)
        target = tl.load(first + column, mask=held, other=0.0).to(tl.float32)
        tl.store(max_T + row, largest)
        tl.store(sum_T + row, tl.sum(sum_B, 0))
        tl.store(weighted_T + row, tl.sum(weighted_B, 0))
        tl.store(target_T + row, target)


@triton.jit
def dlogits_kernel(
    logits_TV,
    targets_T,
    max_T,
    log_sum_T,
    entropy_T,
    dlogprob_T,
    dentropy_T,
    row_stride,
    columns,
    real_columns,
    vocab_start,
    inv_temperature,
    BLOCK: tl.constexpr,
):
    """Overwrite each row with its gradient: (g 1[v = target] - p_v (g + h (log p_v + H))) / temperature.

    g and h are the derivatives of the loss in the token's log-probability and entropy, H is the
    entropy. Rows with g = h = 0 (masked, clipped, of zero advantage) are written without being read.
    """
    row = tl.program_id(0).to(tl.int64)
    first = logits_TV + row * row_stride
    g = tl.load(dlogprob_T + row) * inv_temperature
    h = tl.load(dentropy_T + row) * inv_temperature
    if (tl.abs(g) + tl.abs(h)) == 0.0:
        for begin in range(0, columns, BLOCK):
            column_B = begin + tl.arange(0, BLOCK)
            tl.store(first + column_B, tl.zeros([BLOCK], logits_TV.dtype.element_ty), mask=column_B < columns)
    else:
        largest = tl.load(max_T + row)
        log_sum = tl.load(log_sum_T + row)
        entropy = tl.load(entropy_T + row)
        column = tl.load(targets_T + row) - vocab_start
        for begin in range(0, columns, BLOCK):
            column_B = begin + tl.arange(0, BLOCK)
            x_B = tl.load(first + column_B, mask=column_B < columns, other=float("-inf")).to(tl.float32)
            log_p_B = (x_B - largest) * inv_temperature - log_sum
            p_B = tl.exp(log_p_B)
            d_B = tl.where(column_B == column, g, 0.0) - p_B * (
                g + h * (tl.where(p_B > 0.0, log_p_B, 0.0) + entropy)
            )
            d_B = tl.where(column_B < real_columns, d_B, 0.0)
            tl.store(first + column_B, d_B.to(logits_TV.dtype.element_ty), mask=column_B < columns)
