"""Deals the training samples of an iteration over the data-parallel ranks; most stay where they were made.

No rank sees the samples of the whole batch. Between ranks go counts, the length of every unit (samples that
share a prompt), and the samples of units that a rank trains on and does not have. The outcome depends on the
iteration's samples and the trainer's layout, and not on the engines that made them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise

import torch
import torch.distributed as dist

from selfemo.config.schema import TrainConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.grpo.wire import decode, encode
from selfemo.kernels import BatchCounts
from selfemo.megatron.balance import even_out, home
from selfemo.megatron.batch import DealtBatch, batches_at_once, shares_prompts
from selfemo.megatron.packing import balance_by_tokens, read_tokens, units
from selfemo.megatron.parallel import RankLayout
from selfemo.process.collectives import together
from selfemo.process.engine_ranks import EngineRanks
from selfemo.process.exchange import exchange, rows_of_ranks, tables_of_ranks


@dataclass(frozen=True)
class _Unit:
    """A unit that this rank trains on or answers for."""

    indices: range
    """Of its samples in the whole batch."""
    length_tokens: int
    part: int
    """The data-parallel rank that trains on it."""
    owner: int
    """The rank that answers for it."""


@dataclass(frozen=True)
class _Table:
    """What every rank knows of the units of a batch, in the order of the iteration."""

    part_U: torch.Tensor
    length_U: torch.Tensor
    first_U: torch.Tensor
    """Index of each unit's first sample in the whole batch; one more at the end."""
    owners: list[int]
    """Index of each rank's first unit; one more at the end."""

    def trained_by(self, part: int) -> list[_Unit]:
        """List the units of a data-parallel rank."""
        return self._units((self.part_U == part).nonzero()[:, 0])

    def owned_by(self, rank: int) -> list[_Unit]:
        """List the units that a rank answers for."""
        return self._units(torch.arange(self.owners[rank], self.owners[rank + 1]))

    def _units(self, chosen: torch.Tensor) -> list[_Unit]:
        columns = (chosen, self.first_U[chosen], self.first_U[chosen + 1], self.length_U[chosen])
        rows = torch.stack([*columns, self.part_U[chosen]], dim=1).tolist()
        return [
            _Unit(range(first, after), length, part, bisect_right(self.owners, unit) - 1)
            for unit, first, after, length, part in rows
        ]


class SampleDealer:
    """Deals samples in one layout. Every method is collective."""

    def __init__(
        self,
        train: TrainConfig,
        updates: int,
        episodes: int,
        layout: RankLayout,
        ranks: EngineRanks,
        device: torch.device,
    ) -> None:
        """Meet the other ranks, to learn which of them train on the same samples.

        Args:
            updates: batches that an iteration is cut into.
            episodes: those of an iteration, over all engines.
            ranks: those that share this rank's engine.
        """
        self._train, self._updates, self._episodes = train, updates, episodes
        self._layout, self._ranks, self._device = layout, ranks, device
        self._share_prompts, self._at_once = shares_prompts(train, layout), batches_at_once(layout)
        self._ranks_of_part: list[list[int]] = [[] for _ in range(layout.sizes.data)]
        for rank, (part,) in enumerate(rows_of_ranks([layout.data_rank], device)):
            self._ranks_of_part[part].append(rank)

    def deal(self, samples: Sequence[TrainingSample], own: Collection[int]) -> list[DealtBatch]:
        """Deal an iteration's samples, cut into the batches of its updates.

        Args:
            samples: of the episodes that this rank's engine played, in order.
            own: the episodes among them that this rank answers for.

        Raises:
            UserError: a sample is longer than train.max_tokens_per_microbatch; on every rank alike.
        """
        mine = [index for index, sample in enumerate(samples) if sample.episode in own]
        begins = [0, *accumulate(row[0] for row in rows_of_ranks([len(mine)], self._device))]
        engine_begin = begins[dist.get_rank() - self._ranks.part]
        bounds = [begins[-1] * update // self._updates for update in range(self._updates + 1)]
        return [
            self._batch(samples[max(0, start - engine_begin) : max(0, end - engine_begin)], own, end - start)
            for start, end in pairwise(bounds)
        ]

    def _batch(self, held: Sequence[TrainingSample], own: Collection[int], sequences: int) -> DealtBatch:
        """Deal one batch of `sequences` samples, of which this engine holds some."""
        mine = [sample for sample in held if sample.episode in own]
        held = [sample for sample in held if sample.weight != 0]
        trained = [sample for sample in mine if sample.weight != 0]
        tokens = sum(len(sample.completion_ids) for sample in mine)
        trained_tokens = sum(len(sample.completion_ids) for sample in trained)
        rows = rows_of_ranks([tokens, len(trained), trained_tokens, read_tokens(trained)], self._device)
        tokens, _, trained_tokens, whole = (sum(column) for column in zip(*rows, strict=True))
        begins = [0, *accumulate(row[1] for row in rows)]
        rank = dist.get_rank()
        table = self._table(trained, begins[rank], whole)
        mine_to_train = table.trained_by(self._layout.data_rank)
        bins = self._micro_batches([unit.length_tokens for unit in mine_to_train])
        held_by_index = dict(enumerate(held, begins[rank - self._ranks.part]))
        found, moved_samples, moved_bytes = self._move(table, mine_to_train, held_by_index)
        return DealtBatch(
            samples=found,
            micro_batches=tuple(
                tuple(index for place in members for index in mine_to_train[place].indices)
                for members in bins
            ),
            counts=BatchCounts(sequences=sequences, tokens=tokens),
            trained_samples=begins[-1],
            trained_tokens=trained_tokens,
            moved_samples=moved_samples,
            moved_bytes=moved_bytes,
        )

    def _table(self, trained: Sequence[TrainingSample], begin: int, whole: int) -> _Table:
        """Gather the units of all ranks, and decide who trains on each."""
        parts = self._layout.sizes.data
        cut = together(
            lambda: units(
                trained,
                self._share_prompts,
                self._train.max_tokens_per_microbatch,
                parts * self._at_once,
                whole,
                begin,
            )
        )
        rows = [
            (
                unit.length_tokens,
                len(unit.sample_indices),
                home(trained[unit.sample_indices[0]].episode, self._episodes, parts),
            )
            for unit in cut
        ]
        counts = [row[0] for row in rows_of_ranks([len(rows)], self._device)]
        mine = torch.tensor(rows, dtype=torch.int32).reshape(-1, 3)
        length_U, size_U, home_U = tables_of_ranks(mine, counts, self._device).long().unbind(1)
        return _Table(
            part_U=even_out(length_U, home_U, parts),
            length_U=length_U,
            first_U=torch.cat([size_U.new_zeros(1), size_U.cumsum(0)]),
            owners=[0, *accumulate(counts)],
        )

    def _micro_batches(self, lengths: Sequence[int]) -> list[tuple[int, ...]]:
        """Deal this rank's units into as few micro-batches as all ranks can."""
        count = 0
        while True:
            bins = balance_by_tokens(lengths, self._train.max_tokens_per_microbatch, self._at_once, count)
            agreed = max(row[0] for row in rows_of_ranks([len(bins)], self._device))
            if agreed == count:
                return bins
            count = agreed

    def _move(
        self, table: _Table, wanted: Sequence[_Unit], held: Mapping[int, TrainingSample]
    ) -> tuple[dict[int, TrainingSample], int, int]:
        """Send samples to the ranks that train on them.

        Args:
            wanted: the units that this rank trains on.
            held: the samples that its engine made, by index.

        Returns:
            those that this rank trains on, by index; the number of samples moved; their bytes.
        """
        leaving: dict[int, list[_Unit]] = {}
        moved = 0
        for unit in table.owned_by(dist.get_rank()):
            others = [rank for rank in self._ranks_of_part[unit.part] if not self._ranks.shares(rank)]
            moved += len(unit.indices) if others else 0
            for other in others:
                leaving.setdefault(other, []).append(unit)
        sent = {
            other: encode([[held[index] for index in unit.indices] for unit in units_of_other])
            for other, units_of_other in leaving.items()
        }
        received = exchange(sent, self._device)
        found: dict[int, TrainingSample] = {}
        for owner, group in groupby(wanted, key=lambda unit: unit.owner):
            theirs = list(group)
            if self._ranks.shares(owner):
                found |= {index: held[index] for unit in theirs for index in unit.indices}
                continue
            decoded = decode(received[owner], [len(unit.indices) for unit in theirs])
            for unit, samples in zip(theirs, decoded, strict=True):
                found |= zip(unit.indices, samples, strict=True)
        sums = rows_of_ranks([moved, sum(4 * len(written) for written in sent.values())], self._device)
        moved_samples, moved_bytes = (sum(column) for column in zip(*sums, strict=True))
        return found, moved_samples, moved_bytes
