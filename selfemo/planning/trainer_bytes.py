"""Compute the bytes Megatron allocates on a rank for weights, gradients and optimizer state.

The figures are exact, buffers and padding included. They follow megatron-core 0.19.2 as
selfemo.megatron.optimizer sets it up. DDP lays a chunk's parameters into one buffer, in reverse
order of registration. With the distributed optimizer a parameter starts at a multiple of 64
elements, a bucket ends at a multiple of lcm(copies, 128), the two ends of a tied embedding have
buckets of their own, weights live in such a buffer too, and each of the ranks that hold the same
weights owns an equal run of every bucket. Gradients are fp32. Adam keeps two fp32 moments, and for
bf16 weights an fp32 copy. Frozen weights (train.frozen_layers) are in no buffer and have neither.

Source: core/distributed/param_and_grad_buffer.py, core/optimizer/distrib_optimizer.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from selfemo.config.layout import Layout
from selfemo.models.architecture import DTYPE_BYTES, Architecture
from selfemo.planning.parameters import Allocation, stage_chunks

PARAMETER_ALIGNMENT = 64
BUCKET_ALIGNMENT = 128
GRADIENT_BYTES = 4
MOMENT_BYTES = 2 * 4
MAIN_WEIGHT_BYTES = 4
"""The fp32 copy of a bf16 weight."""


@dataclass(frozen=True)
class TrainerBytes:
    """Bytes on one rank, by kind."""

    weights: int
    gradients: int
    optimizer: int
    """Moments, and the fp32 weights if the model is bf16."""
    reference: int
    """The frozen copy of the SFT weights that the KL is measured against."""

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.reference


@dataclass(frozen=True)
class Buffer:
    """A model chunk's parameters in one contiguous buffer."""

    elements: int
    """Length of the buffer in elements, padding included."""
    spans: tuple[tuple[int, int], ...]
    """First and last element (exclusive) of each parameter, in buffer order."""
    buckets: tuple[tuple[int, int], ...]

    def owned(self, copy: int, copies: int) -> int:
        """Count the parameter elements that rank `copy` of `copies` keeps optimizer state for;
        padding has none."""
        return sum(self.owned_sizes(copy, copies))

    def owned_sizes(self, copy: int, copies: int) -> list[int]:
        """Count the same for every part of a parameter in a bucket; a part that others own is 0."""
        sizes = []
        for start, end in self.buckets:
            share = (end - start) // copies
            first, last = start + copy * share, start + (copy + 1) * share
            sizes += [max(0, min(b, last) - max(a, first)) for a, b in self.spans]
        return sizes


def trainer_bytes(
    architecture: Architecture, layout: Layout, stage: int, copy: int, dtype: str
) -> TrainerBytes:
    """Compute the bytes a rank of a stage allocates; `copy` is its place among the ranks with the
    same weights."""
    element_bytes = DTYPE_BYTES[dtype]
    state_bytes = MOMENT_BYTES + (MAIN_WEIGHT_BYTES if dtype != "float32" else 0)
    weights = gradients = optimizer = reference = 0
    for chunk in stage_chunks(architecture, layout, stage):
        held = sum(allocation.elements for allocation in chunk)
        trained = sum(allocation.elements for allocation in chunk if allocation.is_trained)
        buffer = lay_out(chunk, layout.weight_copies, layout.distributed_optimizer)
        gradients += buffer.elements * GRADIENT_BYTES
        padding = buffer.elements - trained if layout.distributed_optimizer else 0
        weights += (held + padding) * element_bytes
        optimizer += (
            buffer.owned(copy, layout.weight_copies) if layout.distributed_optimizer else trained
        ) * state_bytes
        reference += held * element_bytes
    return TrainerBytes(weights, gradients, optimizer, reference)


def lay_out(chunk: Sequence[Allocation], copies: int, distributed: bool) -> Buffer:
    """Lay a chunk's trained parameters into a buffer as DDP does."""
    alignment = PARAMETER_ALIGNMENT if distributed else 1
    bucket_alignment = math.lcm(copies, BUCKET_ALIGNMENT) if distributed else 1
    spans: list[tuple[int, int]] = []
    buckets: list[tuple[int, int]] = []
    start = bucket_start = 0
    is_open = False
    for allocation in reversed(chunk):
        if not allocation.is_trained:
            continue
        start = _round_up(start, alignment)
        alone = distributed and allocation.own_bucket
        if alone and is_open:
            start = _round_up(start, bucket_alignment)
            buckets.append((bucket_start, start))
            bucket_start, is_open = start, False
        spans.append((start, start + allocation.elements))
        start += allocation.elements
        is_open = True
        if alone:
            start = _round_up(start, bucket_alignment)
            buckets.append((bucket_start, start))
            bucket_start, is_open = start, False
    if is_open:
        start = _round_up(start, bucket_alignment)
        buckets.append((bucket_start, start))
    return Buffer(start, tuple(spans), tuple(buckets))


def checkpoint_bytes(architecture: Architecture, dtype: str, frozen_layers: int = 0) -> int:
    """Count the bytes of a checkpoint's tensors, which no layout changes.

    They are weights, and of trained ones moments, and fp32 weights if the model is bf16.
    """
    tensors = stage_chunks(architecture, Layout(frozen_layers=frozen_layers), 0)[0]
    state_bytes = MOMENT_BYTES + (MAIN_WEIGHT_BYTES if dtype != "float32" else 0)
    return sum(t.elements * (DTYPE_BYTES[dtype] + state_bytes * t.is_trained) for t in tensors)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
