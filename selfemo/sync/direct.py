"""Execute a reshard plan: build live vLLM parameters from Megatron shards, and send only missing rectangles
between ranks.

The ranks of one data-parallel replica walk the plan's buckets in lockstep. In each bucket a rank sends every
peer one flat message with the rectangles that peer lacks, already in the engine's dtype, and fills its own
parameters from its shard and from the messages that arrived. It hands a parameter on as soon as it is
complete, in the engine's fused and sharded layout, so that extra memory is one bucket plus the largest
parameter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn

from selfemo.models.geometry import region
from selfemo.sync.reshard import Move, ReshardPlan, buckets
from selfemo.weights.rank_parameters import local_parameters


@torch.no_grad()
def direct_tensors(
    chunks: Sequence[nn.Module], plan: ReshardPlan, rank: int, dtype: torch.dtype, bucket_bytes: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every live vLLM parameter of this rank that the plan fills.

    Collective over the ranks that the plan fills: all must exhaust it. A tensor is a view of
    trainer parameters or of one scratch buffer: copy it before advancing.

    Args:
        chunks: the rank's GPTModel, or its virtual-pipeline chunks.
        plan: filling every rank of this rank's data-parallel replica, and no other.
        dtype: the engine's; values are converted before they are sent.
        bucket_bytes: the most that a rank sends and receives per round (but at least one row).
    """
    shards = {
        parameter.name: tensor.detach() for parameter, tensor in local_parameters(chunks, plan.architecture)
    }
    runs = list(buckets(plan, max(1, bucket_bytes // dtype.itemsize)))
    expected = Counter(move.target for run in runs for move in run if move.target_rank == rank)
    shapes = live_shapes(plan, rank)
    device = next(iter(shards.values())).device
    scratch = torch.empty(max(math.prod(shape) for shape in shapes.values()), dtype=dtype, device=device)
    started: set[str] = set()
    for run in runs:
        arrived = _exchange(run, shards, rank, dtype, device)
        for move in run:
            if move.target_rank != rank:
                continue
            name, shape = move.target, shapes[move.target]
            expected[name] -= 1
            if not move.crosses and move.shape == shape:
                yield name, shards[move.source][region(move.source_start, shape)]
                continue
            live = scratch[: math.prod(shape)].view(shape)
            if name not in started:
                started.add(name)
                live.zero_()  # no move fills rows of padding
            arriving = (
                arrived[move] if move.crosses else shards[move.source][region(move.source_start, move.shape)]
            )
            live[region(move.target_start, move.shape)].copy_(arriving)
            if expected[name] == 0:
                yield name, live
        # Free the messages that arrived before the next exchange allocates.
        arrived, arriving = {}, scratch
    for name in shapes.keys() - expected.keys():  # vocabulary shards that are all padding
        yield name, scratch[: math.prod(shapes[name])].view(shapes[name]).zero_()


def live_shapes(plan: ReshardPlan, rank: int) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of every live vLLM parameter that the plan fills on a rank, as it expects it."""
    return {
        parameter.vllm_name: parameter.vllm(rank % plan.engine.tensor, plan.engine.tensor).shape
        for parameter in plan.filled
    }


def _exchange(
    run: Sequence[Move],
    shards: Mapping[str, torch.Tensor],
    rank: int,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[Move, torch.Tensor]:
    """Send and receive the crossing moves, one message per pair of ranks; return what arrived, by move."""
    outgoing: dict[int, list[Move]] = {}
    incoming: dict[int, list[Move]] = {}
    for move in run:
        if move.crosses and move.source_rank == rank:
            outgoing.setdefault(move.target_rank, []).append(move)
        elif move.crosses and move.target_rank == rank:
            incoming.setdefault(move.source_rank, []).append(move)
    operations: list[dist.P2POp] = []
    for peer, moves in outgoing.items():
        message = torch.empty(sum(move.elements for move in moves), dtype=dtype, device=device)
        for move, piece in zip(moves, message.split([move.elements for move in moves])):
            piece.view(move.shape).copy_(shards[move.source][region(move.source_start, move.shape)])
        operations.append(dist.P2POp(dist.isend, message, peer))
    messages: dict[int, torch.Tensor] = {}
    for peer, moves in incoming.items():
        messages[peer] = torch.empty(sum(move.elements for move in moves), dtype=dtype, device=device)
        operations.append(dist.P2POp(dist.irecv, messages[peer], peer))
    if operations:
        for request in dist.batch_isend_irecv(operations):
            request.wait()
    arrived: dict[Move, torch.Tensor] = {}
    for peer, moves in incoming.items():
        pieces = messages[peer].split([move.elements for move in moves])
        arrived.update((move, piece.view(move.shape)) for move, piece in zip(moves, pieces))
    return arrived
