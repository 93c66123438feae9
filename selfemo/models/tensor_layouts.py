"""Lay Hugging Face tensors over tensor-parallel ranks as Megatron and vLLM do.

A layout turns (tensors, sizes, rank) into a `Placement`, once for Megatron and once for vLLM. The
two differ in three places only: the fused attention projection, which Megatron interleaves per
key-value head and vLLM stacks; the padding of the vocabulary; and the replication of key-value
heads if ranks outnumber them.

Source: megatron-core 0.19.2 (core/transformer/attention.py `get_query_key_value_tensors`, mlp.py,
tensor_parallel/layers.py), vllm 0.32 (model_executor/layers/linear.py,
vocab_parallel_embedding.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from selfemo.common.errors import UserError
from selfemo.models.geometry import Box, Placement, Shape

KERNEL_ALIGNMENT = 16
"""The rows of a vocabulary shard are a multiple of this, for the fused logprob kernels and tensor
cores.
"""
VLLM_VOCABULARY_MULTIPLE = 64
"""vLLM pads the vocabulary to a multiple of this at every tensor-parallel size."""


@dataclass(frozen=True)
class HfTensor:
    """A tensor of a Hugging Face checkpoint."""

    name: str
    shape: Shape

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Heads:
    """The numbers that the layout of the attention projection depends on."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


class TensorLayout(Protocol):
    """Maps the elements of some Hugging Face tensors to the tensor-parallel ranks that hold them."""

    def megatron(self, tensors: tuple[HfTensor, ...], heads: Heads, rank: int, size: int) -> Placement:
        """Return the shard of Megatron rank `rank` of `size`."""
        ...

    def vllm(self, tensors: tuple[HfTensor, ...], heads: Heads, rank: int, size: int) -> Placement:
        """Return the live parameter of vLLM rank `rank` of `size`."""
        ...


class Replicated:
    """Every rank holds the whole tensor, as for norms."""

    def megatron(self, tensors: tuple[HfTensor, ...], heads: Heads, rank: int, size: int) -> Placement:
        (tensor,) = tensors
        origin = (0,) * len(tensor.shape)
        return Placement(tensor.shape, (Box(tensor.name, origin, origin, tensor.shape),))

    vllm = megatron


@dataclass(frozen=True)
class Split:
    """Rank r holds the r-th equal part along `dim`: 0 for column-parallel layers, 1 for
    row-parallel ones.
    """

    dim: int

    def megatron(self, tensors: tuple[HfTensor, ...], heads: Heads, rank: int, size: int) -> Placement:
        (tensor,) = tensors
        return _stack((_part(tensor, self.dim, rank, size),))

    vllm = megatron


class VocabularyRows:
    """Rows split over ranks after padding with zero rows, so that every shard has the same number
    of rows.
    """

    def megatron(self, tensors: tuple[HfTensor, ...], heads: Heads, rank: int, size: int) -> Placement:
        """Return the rank's rows, padded by `padded_vocab_size`."""
        return _vocabulary_part(tensors, padded_vocab_size(tensors[0].shape[0], size), rank, size)

    def vllm(self, tensors: tuple[HfTensor, ...], heads: Heads, rank: int, size: int) -> Placement:
        """Return the rank's rows, padded to a multiple of 64 over all ranks."""
        return _vocabulary_part(tensors, _round_up(tensors[0].shape[0], VLLM_VOCABULARY_MULTIPLE), rank, size)


class FusedGateUp:
    """Gate and up projection in one matrix: rank r holds [gate_r; up_r], in Megatron as in vLLM."""

    def megatron(self, tensors: tuple[HfTensor, ...], heads: Heads, rank: int, size: int) -> Placement:
        return _stack(tuple(_part(tensor, 0, rank, size) for tensor in tensors))

    vllm = megatron


class FusedQkv:
    """Query, key and value projection (weight or bias) in one tensor."""

    def megatron(self, tensors: tuple[HfTensor, ...], heads: Heads, rank: int, size: int) -> Placement:
        """Stack, for each of the rank's key-value heads, the query heads that read it, its key head
        and its value head.

        Raises:
            UserError: the key-value heads do not divide over `size` ranks.
        """
        if heads.num_kv_heads % size:
            raise UserError(
                f"{tensors[1].name}: {heads.num_kv_heads} key-value heads do not divide over "
                f"parallel.tensor={size}: choose a divisor of {heads.num_kv_heads}, or pipeline or data "
                "parallelism"
            )
        per_rank = heads.num_kv_heads // size
        group_rows = heads.num_heads // heads.num_kv_heads * heads.head_dim
        parts: list[Box] = []
        for head in range(rank * per_rank, (rank + 1) * per_rank):
            for tensor, rows in zip(tensors, (group_rows, heads.head_dim, heads.head_dim)):
                parts.append(_rows(tensor, head * rows, rows))
        return _stack(tuple(parts))

    def vllm(self, tensors: tuple[HfTensor, ...], heads: Heads, rank: int, size: int) -> Placement:
        """Stack [q_r; k_r; v_r]; ranks beyond the number of key-value heads share one key and value
        head.
        """
        query, key, value = tensors
        if size <= heads.num_kv_heads:
            return _stack(tuple(_part(tensor, 0, rank, size) for tensor in tensors))
        shared = rank // (size // heads.num_kv_heads)
        return _stack(
            (
                _part(query, 0, rank, size),
                _part(key, 0, shared, heads.num_kv_heads),
                _part(value, 0, shared, heads.num_kv_heads),
            )
        )


def padded_vocab_size(vocab_size: int, tensor_parallel: int) -> int:
    """Return the vocabulary rows that Megatron allocates over all ranks.

    That is `vocab_size` rounded up to a multiple of `lcm(64, 16 * tensor_parallel)`. 64 is vLLM's
    own rule, so that up to tensor_parallel=4 both sides cut the vocabulary at the same rows and a
    direct weight sync moves no row between ranks; `16 * tensor_parallel` makes every shard a
    multiple of 16 rows for the kernels.
    """
    return _round_up(vocab_size, math.lcm(VLLM_VOCABULARY_MULTIPLE, KERNEL_ALIGNMENT * tensor_parallel))


def _vocabulary_part(tensors: tuple[HfTensor, ...], padded_rows: int, rank: int, size: int) -> Placement:
    (tensor,) = tensors
    if padded_rows % size:
        raise UserError(
            f"{tensor.name}: a vocabulary of {padded_rows} padded rows does not divide over {size} ranks"
        )
    rows = padded_rows // size
    first, present = rank * rows, max(0, min(rows, tensor.shape[0] - rank * rows))
    return Placement((rows, *tensor.shape[1:]), (_rows(tensor, first, present),) if present else ())


def _rows(tensor: HfTensor, first: int, count: int) -> Box:
    """Return rows [first, first + count) of a tensor, not placed yet."""
    rest = tensor.shape[1:]
    return Box(tensor.name, (first, *(0 for _ in rest)), (0,) * len(tensor.shape), (count, *rest))


def _part(tensor: HfTensor, dim: int, rank: int, size: int) -> Box:
    """Return the rank-th of `size` equal parts along `dim`, not placed yet."""
    extent = tensor.shape[dim]
    if extent % size:
        raise UserError(
            f"{tensor.name}: dimension {dim} of {extent} does not divide over a tensor-parallel size of "
            f"{size}: choose a divisor"
        )
    start, shape = [0] * len(tensor.shape), list(tensor.shape)
    start[dim], shape[dim] = extent // size * rank, extent // size
    return Box(tensor.name, tuple(start), (0,) * len(shape), tuple(shape))


def _stack(boxes: tuple[Box, ...]) -> Placement:
    """Build a local tensor of the given boxes, one below the other."""
    placed: list[Box] = []
    rows = 0
    for box in boxes:
        placed.append(Box(box.tensor, box.start, (rows, *(0 for _ in box.shape[1:])), box.shape))
        rows += box.shape[0]
    return Placement((rows, *boxes[0].shape[1:]), tuple(placed))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
