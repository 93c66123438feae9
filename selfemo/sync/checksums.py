"""Prove that the engines hold the trainer's weights: compute one number per Hugging Face tensor on
both sides independently.

The checksum of a tensor is a sum over its elements of (bit pattern) x (a weight that depends on the
element's place), modulo 2**64. It is additive over rectangles, so every rank sums the elements it
holds (Megatron's shards on one side, vLLM's live parameters on the other) and no tensor is ever
assembled. It depends on place, so a swapped row or head changes it as well as a wrong value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn

from selfemo.config.layout import EngineLayout, TrainerLayout
from selfemo.models.architecture import Architecture
from selfemo.models.geometry import Box, Placement, region
from selfemo.models.parameters import hf_tensor_list
from selfemo.weights.rank_parameters import local_parameters

ROW_FACTOR, COLUMN_FACTOR = -7046029254386353131, -4417276706812531889
"""Odd 64-bit constants (xxHash's primes 1 and 2, as signed numbers)."""
CHUNK_ELEMENTS = 1 << 20
"""Elements widened to 64 bits at a time; this bounds the extra memory to a few times 8 MiB."""
_INTEGER = {4: torch.int32, 2: torch.int16}


class WeightMismatch(RuntimeError):
    """An engine holds other weights than the trainer."""


@torch.no_grad()
def trainer_checksums(
    chunks: Sequence[nn.Module],
    architecture: Architecture,
    layout: TrainerLayout,
    rank: int,
    dtype: torch.dtype,
    frozen_layers: int = 0,
) -> torch.Tensor:
    """Compute this rank's share of every tensor's checksum: int64 [tensors], in the order of
    `hf_tensor_list`.

    The copy of a tied embedding on the last stage is not counted.

    Args:
        dtype: the engine's, to which values are converted first.
        frozen_layers: leave the embedding and this many lowest layers at 0; 0 leaves out nothing.
    """
    index = {tensor.name: order for order, tensor in enumerate(hf_tensor_list(architecture))}
    tensor_rank = layout.coordinates(rank)[0]
    sums = [0] * len(index)
    for parameter, tensor in local_parameters(chunks, architecture):
        if not parameter.is_tied_copy and parameter.is_trained(frozen_layers):
            placements = [parameter.megatron(other, layout.tensor) for other in range(tensor_rank + 1)]
            for box in _first_held(placements):
                sums[index[box.tensor]] += box_checksum(
                    tensor[region(box.local_start, box.shape)], box.start, dtype
                )
    return _int64(sums)


@torch.no_grad()
def engine_checksums(
    live: Mapping[str, torch.Tensor],
    architecture: Architecture,
    layout: EngineLayout,
    rank: int,
    frozen_layers: int = 0,
) -> tuple[torch.Tensor, set[str]]:
    """Compute this rank's share of every tensor's checksum from vLLM's live parameters.

    Args:
        frozen_layers: as in `trainer_checksums`.

    Returns:
        int64 [tensors] in the order of `hf_tensor_list`, and the names of tensors that were not read:
            frozen ones, and matrices that a CPU backend has prepacked (their live parameter is empty;
            greedy probes cover them).
    """
    index = {tensor.name: order for order, tensor in enumerate(hf_tensor_list(architecture))}
    sums, unreadable = [0] * len(index), set[str]()
    for parameter in TrainerLayout().parameters(architecture):
        placements = [parameter.vllm(other, layout.tensor) for other in range(rank % layout.tensor + 1)]
        tensor = live.get(parameter.vllm_name)
        if (
            tensor is None
            or tuple(tensor.shape) != placements[-1].shape
            or not parameter.is_trained(frozen_layers)
        ):
            unreadable.update(part.name for part in parameter.tensors)
            continue
        for box in _first_held(placements):
            sums[index[box.tensor]] += box_checksum(
                tensor[region(box.local_start, box.shape)], box.start, tensor.dtype
            )
    return _int64(sums), unreadable


def compare_checksums(
    trainer_sums: torch.Tensor,
    engine_sums: torch.Tensor,
    unreadable: set[str],
    architecture: Architecture,
    trainer: TrainerLayout,
    engine: EngineLayout,
    device: torch.device,
) -> int:
    """Compare every engine with every data-parallel replica. Collective over all ranks.

    Returns:
        The number of tensors compared.

    Raises:
        WeightMismatch: names the first tensor that differs and the ranks of the engine; raised on
            every rank.
    """
    mine = torch.stack([trainer_sums, engine_sums]).to(device)
    everyone = [torch.empty_like(mine) for _ in range(trainer.world_size)]
    dist.all_gather(everyone, mine)
    # Moved to the CPU at once: on a GPU, every comparison of two numbers would wait for the device.
    sums = torch.stack(everyone).cpu()
    names = [tensor.name for tensor in hf_tensor_list(architecture)]
    readable = torch.tensor([name not in unreadable for name in names])
    firsts = range(0, trainer.tensor * trainer.data, trainer.tensor)
    wanted = torch.stack([sums[list(trainer.replica_of(first)), 0].sum(0) for first in firsts])
    for replica in range(engine.replicas):
        ranks = range(replica * engine.tensor, (replica + 1) * engine.tensor)
        held = sums[list(ranks), 1].sum(0)
        differing = ((wanted != held).any(0) & readable).nonzero()
        if len(differing):
            name = names[int(differing[0])]
            raise WeightMismatch(
                f"tensor {name} differs between the trainer and the engine on rank {ranks[0]}: the sync "
                "failed"
            )
    return len(names) - len(unreadable)


def box_checksum(values: torch.Tensor, start: Sequence[int], dtype: torch.dtype) -> int:
    """Compute the checksum, modulo 2**64, of a rectangle that begins at `start` in its tensor."""
    matrix = values if values.ndim == 2 else values[:, None]
    first_row, first_column = start[0], start[1] if len(start) > 1 else 0
    columns = (
        torch.arange(first_column, first_column + matrix.shape[1], device=values.device) * COLUMN_FACTOR + 1
    )
    total = 0
    step = max(1, CHUNK_ELEMENTS // matrix.shape[1])
    for row in range(0, matrix.shape[0], step):
        bits = matrix[row : row + step].to(dtype).contiguous().view(_INTEGER[dtype.itemsize]).long()
        rows = (
            torch.arange(first_row + row, first_row + row + bits.shape[0], device=values.device) * ROW_FACTOR
        )
        total += int((bits * columns).sum() + (bits.sum(1) * rows).sum())
    return total


def _first_held(placements: Sequence[Placement]) -> list[Box]:
    """Return the boxes of the last placement whose elements no earlier rank holds.

    Replicated tensors then count once.
    """
    earlier = {(box.tensor, box.start) for placement in placements[:-1] for box in placement.boxes}
    return [box for box in placements[-1].boxes if (box.tensor, box.start) not in earlier]


def _int64(sums: Sequence[int]) -> torch.Tensor:
    """Convert Python integers modulo 2**64 to signed int64."""
    return torch.tensor([(value + 2**63) % 2**64 - 2**63 for value in sums], dtype=torch.int64)


class Inspectable(Protocol):
    """An engine whose live parameters can be read on this rank."""

    def live_tensors(self) -> Mapping[str, torch.Tensor]:
        """Return the running model's parameters by name, not copied."""
        ...


def verify_transfer(
    chunks: Sequence[nn.Module],
    engine: Inspectable,
    architecture: Architecture,
    trainer: TrainerLayout,
    engine_layout: EngineLayout,
    rank: int,
    frozen_layers: int = 0,
) -> int:
    """Compare the trainer's weights with the weights that every engine holds. Collective.

    Args:
        frozen_layers: leave out the embedding and this many lowest layers; 0 leaves out nothing.

    Returns:
        The number of tensors compared.

    Raises:
        WeightMismatch: names the first tensor that differs; raised on every rank.
    """
    live = engine.live_tensors()
    dtype = next(tensor.dtype for tensor in live.values())
    ours = trainer_checksums(chunks, architecture, trainer, rank, dtype, frozen_layers)
    theirs, unreadable = engine_checksums(live, architecture, engine_layout, rank, frozen_layers)
    device = next(chunks[0].parameters()).device
    return compare_checksums(ours, theirs, unreadable, architecture, trainer, engine_layout, device)
