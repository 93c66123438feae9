# mypy: allow-untyped-defs, no-check-untyped-defs
"""Computes group-relative advantages, one Triton program per group of any size.

fp64 throughout: a rollout batch holds thousands of rewards, so precision costs nothing here, and totals
that should be equal are equal, whatever components they are made of. The first total is subtracted
before the mean, so that equal totals give exactly 0; the variance takes a second pass over the group,
so that it does not cancel.
"""

from __future__ import annotations

import triton
import triton.language as tl

NORMALISE_NONE, NORMALISE_STD, NORMALISE_LEAVE_ONE_OUT = 0, 1, 2
_STD: tl.constexpr = tl.constexpr(NORMALISE_STD)
_LEAVE_ONE_OUT: tl.constexpr = tl.constexpr(NORMALISE_LEAVE_ONE_OUT)


@triton.jit
def _total(rewards_SC, weights_C, sample, keep, components):
    """Sum each sample's components by weight, in fp64; 0 for rows that are not kept."""
    total = tl.zeros(sample.shape, tl.float64)
    for component in range(components):
        reward = tl.load(rewards_SC + sample * components + component, mask=keep, other=0.0).to(tl.float64)
        total += reward * tl.load(weights_C + component).to(tl.float64)
    return total


@triton.jit
def group_advantage_kernel(
    rewards_SC,
    weights_C,
    group_ptr,
    advantage_S,
    mean_G,
    std_G,
    range_G,
    components,
    range_component,
    epsilon,
    degenerate,
    NORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`range_component` below 0 takes the range of the weighted total."""
    group = tl.program_id(0).to(tl.int64)
    begin = tl.load(group_ptr + group)
    end = tl.load(group_ptr + group + 1)
    count = (end - begin).to(tl.float64)

    head_B = begin + tl.zeros([BLOCK], tl.int64)
    # every lane holds the same number
    first = tl.max(_total(rewards_SC, weights_C, head_B, head_B < end, components), 0)

    sum_B = tl.zeros([BLOCK], tl.float64)
    largest_B = tl.zeros([BLOCK], tl.float64)
    high_B = tl.full([BLOCK], float("-inf"), tl.float64)
    low_B = tl.full([BLOCK], float("inf"), tl.float64)
    for start in range(begin, end, BLOCK):
        sample = start + tl.arange(0, BLOCK)
        keep = sample < end
        total = _total(rewards_SC, weights_C, sample, keep, components)
        sum_B += tl.where(keep, total - first, 0.0)
        largest_B = tl.maximum(largest_B, tl.abs(total))
        watched = total
        if range_component >= 0:
            watched = tl.load(rewards_SC + sample * components + range_component, mask=keep, other=0.0).to(
                tl.float64
            )
        high_B = tl.maximum(high_B, tl.where(keep, watched, float("-inf")))
        low_B = tl.minimum(low_B, tl.where(keep, watched, float("inf")))
    mean = tl.sum(sum_B, 0) / count  # relative to the first total

    square_B = tl.zeros([BLOCK], tl.float64)
    for start in range(begin, end, BLOCK):
        sample = start + tl.arange(0, BLOCK)
        keep = sample < end
        deviation = tl.where(
            keep, (_total(rewards_SC, weights_C, sample, keep, components) - first) - mean, 0.0
        )
        square_B += deviation * deviation
    std = tl.sqrt(tl.sum(square_B, 0) / tl.maximum(count - 1.0, 1.0))

    if NORMALISE == _STD:
        scale = tl.where(std > degenerate * tl.max(largest_B, 0), 1.0 / (std + epsilon), 0.0)
    elif NORMALISE == _LEAVE_ONE_OUT:
        scale = count / tl.maximum(count - 1.0, 1.0)
    else:
        scale = count / count  # the number 1, in fp64
    for start in range(begin, end, BLOCK):
        sample = start + tl.arange(0, BLOCK)
        keep = sample < end
        deviation = (_total(rewards_SC, weights_C, sample, keep, components) - first) - mean
        tl.store(advantage_S + sample, (deviation * scale).to(tl.float32), mask=keep)
    tl.store(mean_G + group, (first + mean).to(tl.float32))
    tl.store(std_G + group, std.to(tl.float32))
    tl.store(range_G + group, (tl.max(high_B, 0) - tl.min(low_B, 0)).to(tl.float32))
