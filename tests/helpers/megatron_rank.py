"""Build this rank's Megatron chunks of a Hugging Face directory, in a layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from selfemo.config.layout import parallel_layout
from selfemo.config.schema import ParallelConfig
from selfemo.megatron.device import select_device
from selfemo.megatron.model import CompletionGPTModel, build_chunks, transformer_config
from selfemo.megatron.parallel import (
    RankLayout,
    init_distributed,
    init_parallel,
    leave_parallel,
    pipeline_group,
    tensor_group,
)
from selfemo.models.architecture import Architecture, read_architecture
from selfemo.weights.gather import WeightGroups

TIMEOUT_S = 120


@contextmanager
def megatron_chunks(
    hf_dir: Path, parallel: ParallelConfig, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[list[CompletionGPTModel], Architecture, RankLayout]]:
    """Build uninitialised chunks of this rank and the layout; leaves the layout at the end.

    Parameters are NaN, so that one that nobody fills shows.
    """
    device = select_device()
    architecture = read_architecture(hf_dir)
    init_distributed(device, TIMEOUT_S)
    layout = init_parallel(parallel_layout(parallel, 1, dist.get_world_size()), device, seed=1)
    try:
        chunks = build_chunks(
            architecture, transformer_config(architecture, layout.sizes, dtype, device), layout, 128, device
        )
        with torch.no_grad():
            for chunk in chunks:
                for parameter in chunk.parameters():
                    parameter.fill_(torch.nan)
        yield chunks, architecture, layout
    finally:
        leave_parallel()


def weight_groups(layout: RankLayout) -> WeightGroups:
    """Name the groups over which `hf_tensors` communicates."""
    return WeightGroups(
        tensor_group(),
        pipeline_group(),
        layout.tensor_rank,
        layout.sizes.tensor,
        layout.pipeline_rank,
        layout.sizes.pipeline,
    )
