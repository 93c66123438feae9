"""Gathers the key and value rows of segments, of which those of a shared prompt are read many times.

The gradient of a row is the sum over its readers. It is taken in fp32 and in the readers' order:
index_select's own backward adds in the dtype of the rows, so that bf16 would round once per reader, and on a
GPU with atomics, in an order that changes from run to run.
"""

from __future__ import annotations

from typing import Any

import torch


class GatherRows(torch.autograd.Function):
    """Gather rows [K, ...] of a source [T, ...] at int64 indices [K], repeated or not, in any order."""

    @staticmethod
    def forward(ctx: Any, source: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(indices)
        ctx.tokens = len(source)
        return source.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (indices,) = ctx.saved_tensors
        add = sum_sorted if grad.is_cuda else sum_in_order
        return add(grad, indices, ctx.tokens).to(grad.dtype), None


def gather_rows(source: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return [K, ...], the rows of `source` [T, ...] at `indices` (int64 [K])."""
    gathered: torch.Tensor = GatherRows.apply(source, indices)
    return gathered


def sum_in_order(grad: torch.Tensor, indices: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return fp32 [tokens, ...], the sums of the rows of `grad` with equal index; a CPU adds in order."""
    total = torch.zeros(tokens, *grad.shape[1:], dtype=torch.float32, device=grad.device)
    return total.index_add_(0, indices, grad.float())


def sum_sorted(grad: torch.Tensor, indices: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return the same from rows sorted by index: each sum is one thread's, without atomics.

    ATen/native/cuda/SegmentReduce.cu: `segment_reduce_forward_kernel` loops over a segment in one thread.
    """
    order = torch.argsort(indices, stable=True)
    lengths = torch.bincount(indices, minlength=tokens)
    rows = grad.float().flatten(1).index_select(0, order)
    summed: torch.Tensor = torch.segment_reduce(rows, "sum", lengths=lengths, unsafe=True, initial=0.0)
    return summed.view(tokens, *grad.shape[1:])
