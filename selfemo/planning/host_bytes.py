"""Count the host memory that checkpoints and offloading take on a node, beside the processes' own.

A sharded optimizer is gathered in the host memory of the first rank of every set of weight copies. While
that lasts, megatron-core 0.19.2 holds there (core/optimizer/distrib_optimizer.py,
`get_parameter_state_dp_zero`) the fp32 weights and two moments of the whole buffer, and of one bucket the
parts received, their concatenation and the parts received before them, which are let go only then. Every
rank holds its own shards of the bucket. Afterwards the writer copies every view (core/dist_checkpointing/
strategies/filesystem_async.py, `prepare_write_data`), while the gathered state still stands, and the weights.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

from selfemo.config.layout import Layout
from selfemo.models.architecture import DTYPE_BYTES, Architecture
from selfemo.planning.parameters import stage_chunks
from selfemo.planning.trainer_bytes import MAIN_WEIGHT_BYTES, MOMENT_BYTES, Buffer, lay_out

STATE_BYTES = MOMENT_BYTES + MAIN_WEIGHT_BYTES
"""Bytes per element that are gathered: weight and two moments, all of them fp32."""
ONE_OF_THEM = 4


@dataclass(frozen=True)
class HostBytes:
    """Bytes on the node that needs most."""

    gathering: int
    """While a checkpoint gathers a sharded optimizer; 0 if the optimizer is not sharded."""
    writing: int
    """While its tensors are copied for the writer."""
    offloaded: int
    """Pinned memory that offloaded optimizer state moves to; kept for the whole run."""

    @property
    def total(self) -> int:
        """The most at one time."""
        return self.offloaded + max(self.gathering, self.writing)


def host_bytes(architecture: Architecture, layout: Layout, dtype: str, offloads: bool) -> HostBytes:
    """Count for the node that needs most, of all nodes."""
    needs = (node_host_bytes(architecture, layout, dtype, offloads, n) for n in _nodes_that_differ(layout))
    return max(needs, key=lambda need: need.total)


def node_host_bytes(
    architecture: Architecture, layout: Layout, dtype: str, offloads: bool, node: int
) -> HostBytes:
    """Count for one node; `offloads` is train.offload_during_rollout."""
    first = node * layout.gpus_per_node
    ranks = range(first, min(first + layout.gpus_per_node, layout.world_size))
    places = Counter((copy, stage) for _, copy, stage in map(layout.coordinates, ranks))
    gathering = writing = offloaded = 0
    for (copy, stage), ranks_there in places.items():
        gathered, written = _checkpoint_bytes(architecture, layout, dtype, stage, copy == 0)
        gathering += ranks_there * gathered
        writing += ranks_there * written
        if offloads:
            offloaded += ranks_there * _pinned_bytes(architecture, layout, stage, copy)
    return HostBytes(gathering, writing, offloaded)


@cache
def gathered_elements(architecture: Architecture, layout: Layout) -> int:
    """Count the elements that the busiest first rank gathers; 0 if the optimizer is not sharded."""
    if not layout.distributed_optimizer:
        return 0
    return max(
        sum(buffer.elements for buffer in _buffers(architecture, layout, stage))
        for stage in range(layout.pipeline)
    )


@cache
def _checkpoint_bytes(
    architecture: Architecture, layout: Layout, dtype: str, stage: int, is_first: bool
) -> tuple[int, int]:
    """Count one rank's bytes while a checkpoint is gathered, and while it is copied for the writer."""
    chunks = stage_chunks(architecture, layout, stage)
    weights = sum(a.elements for chunk in chunks for a in chunk) * DTYPE_BYTES[dtype]
    if not layout.distributed_optimizer:
        trained = sum(a.elements for chunk in chunks for a in chunk if a.is_trained)
        state_bytes = STATE_BYTES if dtype != "float32" else MOMENT_BYTES
        return 0, weights + state_bytes * trained if is_first else 0
    buffers = _buffers(architecture, layout, stage)
    bucket = max((end - start for buffer in buffers for start, end in buffer.buckets), default=0)
    own_shards = bucket // layout.weight_copies * STATE_BYTES
    if not is_first:
        return own_shards, 0
    whole = sum(buffer.elements for buffer in buffers) * STATE_BYTES
    return whole + own_shards + 3 * bucket * ONE_OF_THEM, 2 * whole + weights


@cache
def _pinned_bytes(architecture: Architecture, layout: Layout, stage: int, copy: int) -> int:
    """Count what one rank pins: a block for each of a parameter's three fp32 tensors.

    torch rounds a pinned block up to a power of two (aten/src/ATen/core/CachingHostAllocator.h, `allocate`).
    """
    copies = layout.weight_copies if layout.distributed_optimizer else 1
    owned = (
        size
        for buffer in _buffers(architecture, layout, stage)
        for size in buffer.owned_sizes(copy if copies > 1 else 0, copies)
    )
    return sum(3 * (1 << (ONE_OF_THEM * size - 1).bit_length()) for size in owned if size)


@cache
def _buffers(architecture: Architecture, layout: Layout, stage: int) -> tuple[Buffer, ...]:
    return tuple(
        lay_out(chunk, layout.weight_copies, layout.distributed_optimizer)
        for chunk in stage_chunks(architecture, layout, stage)
    )


def _nodes_that_differ(layout: Layout) -> range | set[int]:
    """Return the nodes that can need most: those where a set of weight copies begins, and the first."""
    begins = (
        layout.rank(tensor, 0, stage) for stage in range(layout.pipeline) for tensor in range(layout.tensor)
    )
    return {0, *(rank // layout.gpus_per_node for rank in begins)}
