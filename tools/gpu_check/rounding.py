"""Bounds how far rounding alone can carry a small model's logits and gradients from exact ones.

One operation's result is off by u / 2.5 of its size, root mean square (u of selfemo.config.logprob_gap:
2^-8 in bf16, 2^-18 in fp32 with its sums of thousands of terms). R operations in a row, whose errors are
independent, add up to sqrt(R) of that. A tensor's distance from the truth is therefore taken as a whole,
|a - b| / |b| over all its elements, which is an average over many such errors, not the luck of the
largest one.

A layer rounds LAYER_ROUNDINGS times on the way from its input to its output: two norms, the joint
projection, a head norm, the rotation, the attention's probabilities and its output, the output
projection, two sums with the residual stream, gate and up, the activation, its product, the last
projection. The final norm and the output layer add two. A gradient comes back through as many roundings
as went forward.

TIMES_EXPECTED allows four times the expected distance: twice for a softmax's gradient, which is a
difference of two rounded numbers, and twice for tensors of few elements. Measured in bf16 on a CPU
(docs/gpu.md): 0.7 times in the logits, 0.4 to 1.7 times in the gradients.
"""

from __future__ import annotations

import math

import torch

from selfemo.config.logprob_gap import UNITS

LAYER_ROUNDINGS = 14
OUTPUT_ROUNDINGS = 2
TIMES_EXPECTED = 4.0


def expected_distance(dtype: str, layers: int, is_gradient: bool) -> float:
    """Return the distance |a - b| / |b| that rounding is expected to cause."""
    forward = LAYER_ROUNDINGS * layers + OUTPUT_ROUNDINGS
    return UNITS[dtype] / 2.5 * math.sqrt(2 * forward if is_gradient else forward)


def distance(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Return |found - truth| / |truth| over all elements; NaN if either holds one."""
    return float((found.to(truth) - truth).norm() / truth.norm())
