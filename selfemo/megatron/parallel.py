"""Lay out one torchrun world into megatron-core's process groups.

This module alone enters and leaves megatron-core's global parallel state. Callers hold a frozen
RankLayout instead.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding

from selfemo.common.errors import UserError
from selfemo.config.layout import Layout
from selfemo.megatron.device import Device

DEFAULT_TIMEOUT_S = 300


@dataclass(frozen=True)
class RankLayout:
    """A layout, and this rank's place in each kind of its parallelism."""

    sizes: Layout
    rank: int
    tensor_rank: int
    pipeline_rank: int
    context_rank: int
    data_rank: int

    @property
    def is_first_stage(self) -> bool:
        """True if this rank holds the embedding."""
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """True if this rank computes logits and losses."""
        return self.pipeline_rank == self.sizes.pipeline - 1

    @property
    def is_main(self) -> bool:
        """True on the one rank that prints and writes run files."""
        return self.rank == 0


def init_distributed(device: Device, timeout_s: int) -> None:
    """Join the world that torchrun's environment describes; every collective then times out after
    `timeout_s` seconds.
    """
    if dist.is_initialized():
        return
    for name, value in (
        ("RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("LOCAL_RANK", "0"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "29511"),
    ):
        os.environ.setdefault(name, value)
    dist.init_process_group(
        device.backend, timeout=timedelta(seconds=timeout_s), device_id=device.group_device
    )


def init_parallel(sizes: Layout, device: Device, seed: int, timeout_s: int = DEFAULT_TIMEOUT_S) -> RankLayout:
    """Enter megatron-core's parallel state for a layout of this world.

    Args:
        timeout_s: deadline of a collective on its groups, in seconds.

    Raises:
        UserError: context > 1 on CPU. (selfemo.commands.preflight refuses sizes that do not
            divide.)
    """
    if sizes.context > 1 and not device.is_cuda:
        raise UserError(
            f"parallel.context={sizes.context} needs Transformer Engine's attention, so a GPU: set "
            "parallel.context=1"
        )
    return enter_layout(sizes, device, seed, timeout_s)


def enter_layout(sizes: Layout, device: Device, seed: int, timeout_s: int = DEFAULT_TIMEOUT_S) -> RankLayout:
    """Enter the layout without the checks of `init_parallel`.

    For callers whose attention can do what `sizes` ask: tests bring their own.
    """
    if parallel_state.model_parallel_is_initialized():
        leave_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=sizes.tensor,
        pipeline_model_parallel_size=sizes.pipeline,
        virtual_pipeline_model_parallel_size=sizes.virtual_pipeline if sizes.virtual_pipeline > 1 else None,
        context_parallel_size=sizes.context,
        distributed_timeout_minutes=timeout_s / 60,
        create_gloo_process_groups=device.is_cuda,  # on CPU every group is gloo already
    )
    # A rank that left at once would close a gloo group to which another still connects.
    dist.barrier()
    tensor_parallel.model_parallel_cuda_manual_seed(seed % 2**31, force_reset_rng=True)
    return RankLayout(
        sizes=sizes,
        rank=dist.get_rank(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        context_rank=parallel_state.get_context_parallel_rank(),
        data_rank=parallel_state.get_data_parallel_rank(),
    )


def leave_parallel() -> None:
    """Leave megatron-core's parallel state; the default process group stays.

    megatron-core forgets its groups without destroying them, and each gloo group keeps threads that
    wake a hundred times a second, so they are destroyed here. It does destroy some of the gloo groups
    that it makes beside NCCL's, and a group may not be destroyed twice. The rotary embedding's cache is
    the class's: it would keep every model that computed one, and through it a group.
    """
    # megatron-private
    groups = [group for group in parallel_state._global_process_group_list or () if group is not None]
    parallel_state.destroy_model_parallel()
    for group in groups:
        if group in dist.distributed_c10d._world.pg_map:
            dist.destroy_process_group(group)
    RotaryEmbedding.forward.cache_clear()  # megatron-private


def tensor_group() -> dist.ProcessGroup:
    """Return the ranks that share layers by column and row."""
    return parallel_state.get_tensor_model_parallel_group()


def pipeline_group() -> dist.ProcessGroup:
    """Return the ranks that share the model by stages."""
    return parallel_state.get_pipeline_model_parallel_group()


def copies_group() -> dist.ProcessGroup:
    """Return the ranks that hold the same shard: data-parallel ones with different samples,
    context-parallel ones with parts of the same samples.
    """
    return parallel_state.get_data_parallel_group(with_context_parallel=True)
