"""Gather full Hugging Face tensors from a sharded Megatron model, bucket by bucket, on every rank.

Parameters are cut into runs of rows and packed into buckets of one pipeline stage each. A bucket
first crosses the pipeline (the stage that holds it broadcasts one tensor-parallel shard per rank),
then the tensor-parallel group (all-gather), and is then copied by rectangles into the tensors it
belongs to. In this order only shards cross the pipeline, which spans nodes in production. Extra
memory is one bucket plus the parameter being assembled, at any size of the model. The consumer owns
each yielded tensor, because vLLM's loader keeps some until their layer is complete; the memory of
the tensors it keeps comes on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from selfemo.common.errors import UserError
from selfemo.models.architecture import Architecture
from selfemo.models.geometry import fill_hf
from selfemo.models.parameters import EMBEDDING, LM_HEAD, Parameter, model_parameters
from selfemo.weights.rank_parameters import local_parameters


@dataclass(frozen=True)
class WeightGroups:
    """A rank's place in the model-parallel layout; a group of one rank may be None."""

    tensor: dist.ProcessGroup | None
    pipeline: dist.ProcessGroup | None
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int


SINGLE = WeightGroups(None, None, 0, 1, 0, 1)
"""The groups of a model that is whole on one rank."""


@dataclass(frozen=True)
class _Rows:
    """A run of rows of one local shard, the unit that buckets are packed from."""

    order: int
    """Index of the parameter in streaming order."""
    start: int
    stop: int
    elements: int


@dataclass(frozen=True)
class _Bucket:
    stage: int
    dtype: torch.dtype
    rows: tuple[_Rows, ...]

    @property
    def bytes(self) -> int:
        """Bytes of one rank's shard."""
        return sum(rows.elements for rows in self.rows) * self.dtype.itemsize


class _Scratch:
    """Memory through which every bucket is exchanged.

    It is allocated once, because a backend may hold the last buffer for a moment longer.
    """

    def __init__(self, shard_bytes: int, groups: WeightGroups, device: torch.device) -> None:
        own = shard_bytes if groups.tp_size > 1 or groups.pp_size > 1 else 0
        everyone = shard_bytes * groups.tp_size if groups.tp_size > 1 else 0
        self._own, self._everyone = (
            torch.empty(size, dtype=torch.uint8, device=device) for size in (own, everyone)
        )
        self._tp_size = groups.tp_size

    def own(self, bucket: _Bucket) -> torch.Tensor:
        """Return a flat tensor for this rank's share of a bucket."""
        return self._own[: bucket.bytes].view(bucket.dtype)

    def everyone(self, bucket: _Bucket) -> torch.Tensor:
        """Return a flat tensor for every tensor-parallel rank's share, one after the other."""
        return self._everyone[: bucket.bytes * self._tp_size].view(bucket.dtype)


def hf_tensors(
    chunks: Sequence[nn.Module],
    architecture: Architecture,
    groups: WeightGroups,
    bucket_bytes: int,
    include_tied_head: bool = False,
    frozen_layers: int = 0,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of the Hugging Face checkpoint, whole, in the same order on every rank.

    Collective: all ranks must exhaust the iterator.

    Args:
        chunks: the rank's GPTModel, or its virtual-pipeline chunks.
        bucket_bytes: communication buffers together take at most this (but at least one row of the
            widest parameter).
        include_tied_head: yield the embedding of a tied model as lm_head.weight too (vLLM's loader
            needs it; files do not).
        frozen_layers: leave out the embedding and this many lowest layers; 0 leaves out nothing.

    Raises:
        UserError: the chunks disagree with the architecture, or no stage holds some parameter;
            names it.
    """
    # A generator under torch.no_grad() would keep every tensor until the next one. All of `held` is
    # detached instead.
    parameters = tuple(p for p in model_parameters(architecture) if p.is_trained(frozen_layers))
    held = _by_order(chunks, architecture, parameters, groups)
    device = next(chunks[0].parameters()).device  # a stage of frozen layers alone holds none to send
    stages = _owners(held, parameters, groups)
    buckets = list(_buckets(parameters, stages, groups, bucket_bytes))
    scratch = _Scratch(max(bucket.bytes for bucket in buckets), groups, device)
    assembling: dict[str, torch.Tensor] = {}
    for bucket in buckets:
        for rows, shards in zip(bucket.rows, _exchange(bucket, held, groups, scratch)):
            parameter = parameters[rows.order]
            if rows.start == 0:
                assembling = {
                    tensor.name: torch.empty(tensor.shape, dtype=bucket.dtype, device=device)
                    for tensor in parameter.tensors
                }
            _place(assembling, parameter, rows, shards)
            if rows.stop == parameter.megatron(0, groups.tp_size).shape[0]:
                for name in list(assembling):
                    tensor = assembling.pop(name)
                    yield name, tensor
                    if name == EMBEDDING and architecture.tie_word_embeddings and include_tied_head:
                        yield LM_HEAD, tensor
                    del tensor  # so that the consumer holds the only reference


def _by_order(
    chunks: Sequence[nn.Module],
    architecture: Architecture,
    parameters: tuple[Parameter, ...],
    groups: WeightGroups,
) -> dict[int, torch.Tensor]:
    """Return those of `parameters` that the rank holds, by streaming order, without a tied model's copy
    of the embedding."""
    order = {parameter.name: index for index, parameter in enumerate(parameters)}
    held: dict[int, torch.Tensor] = {}
    for parameter, tensor in local_parameters(chunks, architecture):
        if parameter.is_tied_copy or parameter.name not in order:
            continue
        wanted = parameter.megatron(groups.tp_rank, groups.tp_size).shape
        if tuple(tensor.shape) != wanted:
            raise UserError(
                f"Megatron parameter {parameter.name} has shape {tuple(tensor.shape)}, expected "
                f"{wanted}: wrong layout"
            )
        held[order[parameter.name]] = tensor.detach()
    return held


def _owners(
    held: dict[int, torch.Tensor], parameters: tuple[Parameter, ...], groups: WeightGroups
) -> dict[int, tuple[int, torch.dtype]]:
    """Return, for every parameter in streaming order, the pipeline stage that holds it and its
    dtype.
    """
    mine = {order: tensor.dtype for order, tensor in held.items()}
    by_stage: list[dict[int, torch.dtype]] = [mine] * groups.pp_size
    if groups.pp_size > 1:
        dist.all_gather_object(by_stage, mine, group=groups.pipeline)
    owners: dict[int, tuple[int, torch.dtype]] = {}
    for order, parameter in enumerate(parameters):
        stages = [stage for stage, names in enumerate(by_stage) if order in names]
        if not stages and not parameter.is_tied_copy:
            raise UserError(
                f"Megatron parameter {parameter.name} is on no pipeline stage: the stages do not cover "
                "the model"
            )
        if stages:
            owners[order] = (stages[0], by_stage[stages[0]][order])
    return owners


def _buckets(
    parameters: tuple[Parameter, ...],
    owners: dict[int, tuple[int, torch.dtype]],
    groups: WeightGroups,
    bucket_bytes: int,
) -> Iterator[_Bucket]:
    """Pack rows of all parameters, in streaming order, into buckets.

    A bucket ends when its buffers (own shard, gathered shards) reach the limit, or when the next
    parameter has another stage or dtype.
    """
    copies = 1 if groups.tp_size == 1 else groups.tp_size + 1
    pending: list[_Rows] = []
    pending_elements = 0
    for order, owner in owners.items():
        shape = parameters[order].megatron(0, groups.tp_size).shape
        row_elements = parameters[order].megatron(0, groups.tp_size).elements // shape[0]
        limit_elements = max(row_elements, bucket_bytes // (owner[1].itemsize * copies))
        start = 0
        while start < shape[0]:
            if pending and (
                owners[pending[0].order] != owner or pending_elements + row_elements > limit_elements
            ):
                yield _Bucket(*owners[pending[0].order], tuple(pending))
                pending, pending_elements = [], 0
            stop = min(shape[0], start + (limit_elements - pending_elements) // row_elements)
            pending.append(_Rows(order, start, stop, (stop - start) * row_elements))
            pending_elements += pending[-1].elements
            start = stop
    if pending:
        yield _Bucket(*owners[pending[0].order], tuple(pending))


def _exchange(
    bucket: _Bucket, held: dict[int, torch.Tensor], groups: WeightGroups, scratch: _Scratch
) -> Sequence[Sequence[torch.Tensor]]:
    """Return, for every run of rows in the bucket, its elements from every tensor-parallel rank,
    each flat.

    The next bucket overwrites them.
    """
    parts = [
        held[rows.order][rows.start : rows.stop].reshape(-1) for rows in bucket.rows if rows.order in held
    ]
    if groups.pp_size == groups.tp_size == 1:
        return [(part,) for part in parts]
    flat = scratch.own(bucket)
    if groups.pp_rank == bucket.stage:
        torch.cat(parts, out=flat)
    if groups.pp_size > 1:
        dist.broadcast(flat, group=groups.pipeline, group_src=bucket.stage)
    shards: Sequence[torch.Tensor] = (flat,)
    if groups.tp_size > 1:
        gathered = scratch.everyone(bucket)
        dist.all_gather_into_tensor(gathered, flat, group=groups.tensor)
        shards = gathered.chunk(groups.tp_size)
    return list(zip(*(shard.split([rows.elements for rows in bucket.rows]) for shard in shards)))


def _place(
    assembling: dict[str, torch.Tensor], parameter: Parameter, rows: _Rows, shards: Sequence[torch.Tensor]
) -> None:
    """Copy a run of rows, flat and from every tensor-parallel rank, into the tensors it belongs to.

    Equal shards are copied once.
    """
    placements = [parameter.megatron(rank, len(shards)) for rank in range(len(shards))]
    for placement, shard in zip(placements[:1] if len(set(placements)) == 1 else placements, shards):
        local = shard.view(rows.stop - rows.start, *placement.shape[1:])
        fill_hf(assembling, placement, local, rows.start, rows.stop)
