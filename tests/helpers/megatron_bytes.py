"""Run real Megatron chunks, DDP, optimizer and weight transfers on a rank, and count their bytes.

Tests of the planner compare them with its figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.transformer.transformer_config import TransformerConfig

from selfemo.config.layout import EngineLayout, Layout, parallel_layout
from selfemo.config.schema import ParallelConfig, TrainConfig
from selfemo.megatron.allocated import allocated_bytes
from selfemo.megatron.checkpoint import SHARDING
from selfemo.megatron.device import select_device
from selfemo.megatron.model import DTYPES, CompletionGPTModel, build_chunks, transformer_config
from selfemo.megatron.optimizer import build_optimizer, wrap_chunks
from selfemo.megatron.parallel import (
    RankLayout,
    init_distributed,
    init_parallel,
    leave_parallel,
    pipeline_group,
    tensor_group,
)
from selfemo.models.architecture import Architecture
from selfemo.sync.direct import direct_tensors
from selfemo.sync.reshard import build_plan
from selfemo.weights.gather import WeightGroups, hf_tensors
from tests.helpers.live_bytes import LiveBytes

BUCKET_BYTES = 4096


@dataclass(frozen=True)
class Measured:
    """Bytes of one rank."""

    weights: int
    gradients: int
    optimizer: int
    reference: int
    gathering: int
    """Most bytes of tensors that exist beside these while a sharded optimizer is gathered."""
    direct_by_source: dict[int, int]
    """Bytes received on the direct path from each other rank."""
    checkpoint: int
    """Bytes received on the checkpoint path from all other ranks."""


def measure(
    architecture: Architecture,
    parallel: ParallelConfig,
    engine: EngineLayout,
    dtype: str,
    frozen_layers: int = 0,
) -> Measured:
    """Build a real learner, send its weights both ways, take an optimizer step.

    Count bytes allocated and received.
    """
    device = select_device()
    init_distributed(device, 120)
    layout = init_parallel(parallel_layout(parallel, 1, dist.get_world_size()), device, seed=1)
    try:
        config = transformer_config(architecture, layout.sizes, DTYPES[dtype], device)
        chunks = build_chunks(architecture, config, layout, 64, device, frozen_layers=frozen_layers)
        direct, gathered = _transferred(chunks, architecture, engine, layout, dtype)
        return Measured(
            **_allocated(chunks, config, layout.sizes), direct_by_source=direct, checkpoint=gathered
        )
    finally:
        leave_parallel()


def _allocated(chunks: list[CompletionGPTModel], config: TransformerConfig, sizes: Layout) -> dict[str, int]:
    wrapped = wrap_chunks(chunks, config, sizes)
    optimizer = build_optimizer(wrapped, TrainConfig(), sizes, config.bf16)
    parameters = [p for chunk in chunks for p in chunk.parameters()]
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.main_grad.fill_(1e-3)
    optimizer.step()
    held = allocated_bytes(parameters, optimizer, [p.detach().clone() for p in parameters])
    return {**held, "gathering": _gathering(chunks, optimizer) if sizes.distributed_optimizer else 0}


def _gathering(chunks: list[CompletionGPTModel], optimizer: MegatronOptimizer) -> int:
    """Gather the optimizer's state as a checkpoint does, and count the tensors alive at once."""
    model = {f"model{i}": chunk.sharded_state_dict() for i, chunk in enumerate(chunks)}
    flat = model if len(model) > 1 else model["model0"]
    with LiveBytes() as live:
        optimizer.sharded_state_dict(flat, is_loading=False, metadata=SHARDING)
    return live.peak_bytes


def _transferred(
    chunks: list[CompletionGPTModel],
    architecture: Architecture,
    engine: EngineLayout,
    layout: RankLayout,
    dtype: str,
) -> tuple[dict[int, int], int]:
    rank = dist.get_rank()
    trainer = layout.sizes.trainer
    plan = build_plan(architecture, trainer, engine, trainer.replica_of(rank))
    with _counted() as direct:
        for _ in direct_tensors(chunks, plan, rank, DTYPES[dtype], BUCKET_BYTES):
            pass
    groups = WeightGroups(
        tensor_group(),
        pipeline_group(),
        layout.tensor_rank,
        layout.sizes.tensor,
        layout.pipeline_rank,
        layout.sizes.pipeline,
    )
    with _counted() as gathered:
        for _ in hf_tensors(chunks, architecture, groups, BUCKET_BYTES):
            pass
    return direct, sum(gathered.values())


@contextmanager
def _counted() -> Iterator[dict[int, int]]:
    """Count per source the bytes that this rank receives through the three calls that transfers
    use.

    The calls themselves are made.
    """
    received: dict[int, int] = {}
    originals = {
        name: getattr(dist, name) for name in ("batch_isend_irecv", "broadcast", "all_gather_into_tensor")
    }

    def count(source: int, size: int) -> None:
        received[source] = received.get(source, 0) + size

    def exchange(operations: list[dist.P2POp]) -> Any:
        for operation in operations:
            if operation.op is dist.irecv:
                count(operation.peer, operation.tensor.nbytes)
        return originals["batch_isend_irecv"](operations)

    def broadcast(tensor: torch.Tensor, group: Any, group_src: int) -> Any:
        if dist.get_rank(group) != group_src:
            count(dist.get_global_rank(group, group_src), tensor.nbytes)
        return originals["broadcast"](tensor, group=group, group_src=group_src)

    def gather(output: torch.Tensor, tensor: torch.Tensor, group: Any) -> Any:
        for other in range(dist.get_world_size(group)):
            if other != dist.get_rank(group):
                count(dist.get_global_rank(group, other), tensor.nbytes)
        return originals["all_gather_into_tensor"](output, tensor, group=group)

    replacements = {"batch_isend_irecv": exchange, "broadcast": broadcast, "all_gather_into_tensor": gather}
    for name, replacement in replacements.items():
        setattr(dist, name, replacement)
    try:
        yield received
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
