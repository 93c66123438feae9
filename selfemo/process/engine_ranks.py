"""Knows which ranks share an engine: they play its episodes together, and share the work on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch.distributed as dist

from selfemo.process.dealing import Deal, one_by_one, over_group


@dataclass(frozen=True)
class EngineRanks:
    """This rank's place among the engines, each of `size` consecutive ranks."""

    engines: int = 1
    engine: int = 0
    """Number of this rank's engine."""
    size: int = 1
    part: int = 0
    """This rank's place in its engine."""
    group: dist.ProcessGroup | None = None
    """The engine's ranks; None for an engine of one rank."""

    @classmethod
    def join(cls, size: int) -> EngineRanks:
        """Group the ranks of the run by engines of `size` ranks. Every rank calls it."""
        ranks, rank = dist.get_world_size(), dist.get_rank()
        group = None
        if size > 1:
            firsts = range(0, ranks, size)
            groups = [dist.new_group(list(range(first, first + size))) for first in firsts]
            group = groups[rank // size]
        return cls(ranks // size, rank // size, size, rank % size, group)

    @property
    def deal(self) -> Deal:
        """Shares work out over the ranks of this engine."""
        return one_by_one if self.group is None else over_group(self.group)

    def shares(self, rank: int) -> bool:
        """Tell whether a rank shares this rank's engine."""
        return rank // self.size == self.engine

    def of_engine[T](self, items: Sequence[T]) -> Sequence[T]:
        """Return this engine's share of items that the run has: a contiguous one."""
        return _share(items, self.engine, self.engines)

    def own[T](self, items: Sequence[T]) -> Sequence[T]:
        """Return this rank's share of items that its engine has: a contiguous one."""
        return _share(items, self.part, self.size)

    def map_shares[T, R](self, compute: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]) -> list[R]:
        """Apply `compute`, which takes many items at once, to each rank's own share of them.

        Returns all results in order, on every rank of the engine. What one of them raises, all raise.
        """
        shares = [_share(items, part, self.size) for part in range(self.size)]
        return list(chain.from_iterable(self.deal(compute, shares)))


def _share[T](items: Sequence[T], index: int, count: int) -> Sequence[T]:
    return items[len(items) * index // count : len(items) * (index + 1) // count]
