"""Deals the supervised examples of a step over the data-parallel ranks; a rank makes those that it trains on.

Any rank can make any example, so none travels. Each rank measures a share of them, the ranks exchange the
lengths, 12 bytes for each example, and deal alike. The outcome is that of `whole_batch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import torch
import torch.distributed as dist

from selfemo.config.schema import TrainConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.megatron.batch import DealtBatch, batch_counts, own_micro_batches
from selfemo.megatron.parallel import RankLayout
from selfemo.process.collectives import together
from selfemo.process.exchange import tables_of_ranks


class _Outline(NamedTuple):
    """An example that another rank may have made: ids stand for their number."""

    prompt_ids: range
    completion_ids: range
    episode: int
    """Number of the prompt, the same for neighbours that share it."""

    @property
    def length_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def deal_examples(
    make: Callable[[int], TrainingSample],
    weights: Sequence[float],
    train: TrainConfig,
    layout: RankLayout,
    device: torch.device,
) -> DealtBatch:
    """Make the examples that this rank trains on. Collective.

    Args:
        make: makes an example of the step from its number, with its weight; the same on every rank.
        weights: of all examples.

    Raises:
        UserError: raised by `make`, on every rank alike; or an example is longer than
            train.max_tokens_per_microbatch.
    """
    size, ranks, rank = len(weights), dist.get_world_size(), dist.get_rank()
    bounds = [size * i // ranks for i in range(ranks + 1)]
    mine = range(bounds[rank], bounds[rank + 1])
    made: dict[int, TrainingSample] = {}

    def measured() -> list[tuple[int, int, bool]]:
        made.update((index, make(index)) for index in range(max(0, mine.start - 1), mine.stop) if mine)
        return [
            (
                len(made[index].prompt_ids),
                len(made[index].completion_ids),
                index == 0 or made[index].prompt_ids != made[index - 1].prompt_ids,
            )
            for index in mine
        ]

    rows = torch.tensor(together(measured), dtype=torch.int32).reshape(-1, 3)
    table = tables_of_ranks(rows, [end - start for start, end in pairwise(bounds)], device).tolist()
    prompts = accumulate(is_new for *_, is_new in table)
    outlines = [
        _Outline(range(prompt), range(completion), number)
        for (prompt, completion, _), number in zip(table, prompts, strict=True)
    ]
    micro_batches, counts = own_micro_batches(outlines, train, layout), batch_counts(outlines)
    return DealtBatch(
        samples={index: made.get(index) or make(index) for index in chain.from_iterable(micro_batches)},
        micro_batches=micro_batches,
        counts=counts,
        trained_samples=counts.sequences,
        trained_tokens=counts.tokens,
        total_weight=sum(weights),
    )
