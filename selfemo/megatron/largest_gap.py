"""Find the sampled token on whose logprob trainer and engine differ most, over all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from selfemo.megatron.packing import MicroBatch
from selfemo.megatron.parallel import copies_group, pipeline_group
from selfemo.megatron.step_stats import TokenGap
from selfemo.process import watchdog

WIDTH = 6
"""Values that describe a token: the gap, its sample's index, its place in the completion, its id, and the
logprobs of trainer and engine. fp32 holds every index below 2^24.
"""


def largest_gap(batch: MicroBatch, logprob_N: torch.Tensor, rollout_N: torch.Tensor) -> torch.Tensor:
    """Return fp32 [WIDTH] of the micro-batch's token with the largest |trainer - engine| logprob."""
    places = zip(batch.sample_indices, batch.target_places, strict=True)
    found = [(float(index), float(place)) for index, mine in places for place in mine]
    index_N, place_N = logprob_N.new_tensor(found, dtype=torch.float32).T
    gap_N = (logprob_N - rollout_N).abs()
    id_N = batch.target_ids_N.float()
    rows = torch.stack([gap_N, index_N, place_N, id_N, logprob_N.float(), rollout_N])
    return rows.detach().index_select(1, gap_N.argmax()[None])[:, 0]


def largest_over_ranks(rows: Sequence[torch.Tensor], device: torch.device) -> tuple[float, TokenGap]:
    """Return the largest gap and its token; collective over data- and context-parallel ranks and stages.

    Args:
        rows: of this rank's micro-batches, as `largest_gap` returns them; empty off the last stage.
    """
    rows = rows or [torch.zeros(WIDTH, device=device)]
    with watchdog.doing("reduction of the largest gap"):
        for group in (copies_group(), pipeline_group()):
            mine = _largest(rows)
            rows = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
            dist.all_gather(rows, mine, group=group)
    gap, index, place, token, trainer, engine = _largest(rows).tolist()
    return gap, TokenGap(int(index), int(place), int(token), trainer, engine)


def _largest(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the row with the largest gap; a NaN counts as the largest."""
    stacked = torch.stack(tuple(rows))
    return stacked.index_select(0, stacked[:, 0].argmax()[None])[0].contiguous()
