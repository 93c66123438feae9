"""Deals the training samples of an iteration over the data-parallel ranks; most stay where they were made.

No rank sees the samples of the whole batch, nor a list of its units (samples that share a prompt). Between
ranks go counts, the lengths of units that even out the ranks, and the samples of units that a rank trains on
and does not have. The outcome depends on the iteration's samples and the trainer's layout, and not on the
engines that made them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, groupby

import torch
import torch.distributed as dist

from selfemo.config.schema import TrainConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.grpo.wire import decode, encode
from selfemo.kernels import BatchCounts
from selfemo.megatron.balance import home
from selfemo.megatron.batch import DealtBatch, batch_of, batches_at_once, shares_prompts
from selfemo.megatron.packing import balance_by_tokens, neighbours, read_tokens, units
from selfemo.megatron.parallel import RankLayout
from selfemo.megatron.unit_table import PlacedUnit, UnitTable, place_units
from selfemo.process.collectives import together
from selfemo.process.engine_ranks import EngineRanks
from selfemo.process.exchange import exchange, rows_of_ranks
from selfemo.process.reduction import OverRanks


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
        self._over = OverRanks(device)
        self._share_prompts, self._at_once = shares_prompts(train, layout), batches_at_once(layout)
        self._ranks_of_part: list[list[int]] = [[] for _ in range(layout.sizes.data)]
        for rank, (part,) in enumerate(rows_of_ranks([layout.data_rank], device)):
            self._ranks_of_part[part].append(rank)

    def deal(self, samples: Sequence[TrainingSample], own: Collection[int]) -> list[DealtBatch]:
        """Deal an iteration's samples over the batches of its updates.

        Groups take turns, so that each batch draws evenly on every engine, and few samples move.

        Args:
            samples: of the episodes that this rank's engine played, in order.
            own: the episodes among them that this rank answers for.

        Raises:
            UserError: a sample is longer than train.max_tokens_per_microbatch; on every rank alike.
        """
        return [self._batch(held, own) for held in self._batches(samples, own)]

    def _batches(self, samples: Sequence[TrainingSample], own: Collection[int]) -> list[list[TrainingSample]]:
        """Return this engine's samples of each batch."""
        updates = self._updates
        if updates == 1:
            return [list(samples)]
        groups = [[samples[index] for index in members] for members in neighbours(samples)]
        owned = [group for group in groups if group[0].episode in own]
        rows = rows_of_ranks([len(owned), sum(map(len, owned))], self._device)
        before = rows[: dist.get_rank() - self._ranks.part]
        by_group = sum(row[0] for row in rows) >= updates
        if not by_group:  # no batch shall be empty
            groups = [[sample] for sample in samples]
        held: list[list[TrainingSample]] = [[] for _ in range(updates)]
        for number, group in enumerate(groups, sum(row[0 if by_group else 1] for row in before)):
            held[batch_of(number, updates)] += group
        return held

    def _batch(self, held: Sequence[TrainingSample], own: Collection[int]) -> DealtBatch:
        """Deal one batch, of which this engine holds some samples."""
        mine = [sample for sample in held if sample.episode in own]
        held = [sample for sample in held if sample.weight != 0]
        trained = [sample for sample in mine if sample.weight != 0]
        tokens, sequences, trained_tokens, whole = self._over.counts(
            [
                sum(len(sample.completion_ids) for sample in mine),
                len(mine),
                sum(len(sample.completion_ids) for sample in trained),
                read_tokens(trained),
            ]
        )
        begins = [0, *accumulate(row[0] for row in rows_of_ranks([len(trained)], self._device))]
        rank = dist.get_rank()
        table = self._table(trained, begins[rank], whole)
        bins = self._micro_batches([unit.length_tokens for unit in table.trained])
        held_by_index = dict(enumerate(held, begins[rank - self._ranks.part]))
        found, moved_samples, moved_bytes = self._move(table, held_by_index)
        return DealtBatch(
            samples=found,
            micro_batches=tuple(
                tuple(index for place in members for index in table.trained[place].indices)
                for members in bins
            ),
            counts=BatchCounts(sequences=sequences, tokens=tokens),
            trained_samples=begins[-1],
            trained_tokens=trained_tokens,
            moved_samples=moved_samples,
            moved_bytes=moved_bytes,
        )

    def _table(self, trained: Sequence[TrainingSample], begin: int, whole: int) -> UnitTable:
        """Cut this rank's samples into units, and agree with all ranks on who trains on each."""
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
        return place_units(
            [(begin + unit.sample_indices[0], len(unit.sample_indices), unit.length_tokens) for unit in cut],
            [home(trained[unit.sample_indices[0]].episode, self._episodes, parts) for unit in cut],
            self._layout.data_rank,
            self._ranks_of_part,
            self._device,
        )

    def _micro_batches(self, lengths: Sequence[int]) -> list[tuple[int, ...]]:
        """Deal this rank's units into as few micro-batches as all ranks can."""
        count = 0
        while True:
            bins = balance_by_tokens(lengths, self._train.max_tokens_per_microbatch, self._at_once, count)
            (agreed,) = self._over.largest([len(bins)])
            if agreed == count:
                return bins
            count = agreed

    def _move(
        self, table: UnitTable, held: Mapping[int, TrainingSample]
    ) -> tuple[dict[int, TrainingSample], int, int]:
        """Send samples to the ranks that train on them.

        Args:
            held: the samples that this rank's engine made, by index.

        Returns:
            those that this rank trains on, by index; the number of samples moved; their bytes.
        """
        leaving: dict[int, list[PlacedUnit]] = {}
        moved = 0
        for unit in table.owned:
            others = [rank for rank in self._ranks_of_part[unit.part] if not self._ranks.shares(rank)]
            moved += unit.size if others else 0
            for other in others:
                leaving.setdefault(other, []).append(unit)
        sent = {
            other: encode([[held[index] for index in unit.indices] for unit in units_of_other])
            for other, units_of_other in leaving.items()
        }
        received = exchange(sent, self._device)
        found: dict[int, TrainingSample] = {}
        for owner, group in groupby(table.trained, key=lambda unit: unit.owner):
            theirs = list(group)
            if self._ranks.shares(owner):
                found |= {index: held[index] for unit in theirs for index in unit.indices}
                continue
            decoded = decode(received[owner], [unit.size for unit in theirs])
            for unit, samples in zip(theirs, decoded, strict=True):
                found |= zip(unit.indices, samples, strict=True)
        moved_samples, moved_bytes = self._over.counts(
            [moved, sum(4 * len(written) for written in sent.values())]
        )
        return found, moved_samples, moved_bytes
