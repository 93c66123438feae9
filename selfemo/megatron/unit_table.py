"""Decides which data-parallel rank trains on which units, without a list of all units on any rank.

A unit's ranks at home learn of it, all ranks learn the sum of tokens at each home, and what is given away.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
import torch.distributed as dist

from selfemo.megatron.balance import given_away, places_of
from selfemo.process.exchange import exchange, rows_of_ranks, tables_of_ranks

COLUMNS = 4
"""Integers of a unit on its way: index of its first sample, number of samples, tokens, owner."""


@dataclass(frozen=True)
class PlacedUnit:
    """A unit that this rank trains on or answers for."""

    first: int
    """Index of its first sample in the whole batch."""
    size: int
    """Number of its samples."""
    length_tokens: int
    owner: int
    """The rank that answers for it."""
    part: int
    """The data-parallel rank that trains on it."""

    @property
    def indices(self) -> range:
        """Indices of its samples in the whole batch."""
        return range(self.first, self.first + self.size)


@dataclass(frozen=True)
class UnitTable:
    """The units of a batch that concern this rank, each list in the order of the iteration."""

    trained: list[PlacedUnit]
    """Those of this rank's micro-batches."""
    owned: list[PlacedUnit]
    """Those that this rank answers for."""


def place_units(
    mine: Sequence[tuple[int, int, int]],
    homes: Sequence[int],
    part: int,
    ranks_of_part: Sequence[Sequence[int]],
    device: torch.device,
) -> UnitTable:
    """Agree with all ranks on who trains on which units. Collective.

    Args:
        mine: (index of the first sample, samples, tokens) of each unit that this rank answers for.
        homes: the data-parallel rank that each begins at.
        part: the data-parallel rank that this rank is or belongs to.
        ranks_of_part: the ranks of every data-parallel rank.
    """
    rank = dist.get_rank()
    rows = [(*unit, rank) for unit in mine]
    sent: dict[int, array[int]] = {}
    for row, home in zip(rows, homes, strict=True):
        for other in ranks_of_part[home]:
            sent.setdefault(other, array("i")).extend(row)
    received = exchange(sent, device)  # in order of rank, so the units are in that of the iteration
    at_home = array("i", chain.from_iterable(received.values()))
    home_UC = torch.tensor(at_home, dtype=torch.int64).reshape(-1, COLUMNS)
    load = int(home_UC[:, 2].sum())
    loads_of_ranks = rows_of_ranks([load], device)
    loads = [loads_of_ranks[ranks[0]][0] for ranks in ranks_of_part]
    mean = -(-sum(loads) // len(loads))
    given = torch.tensor(given_away(home_UC[:, 2], load - mean), dtype=torch.int64)
    giving_UC = home_UC[given] if ranks_of_part[part][0] == rank else home_UC[:0]
    moved_UC, part_U = _moved(giving_UC, part, loads, device)
    kept = torch.ones(len(home_UC), dtype=torch.bool)
    kept[given] = False
    trained = torch.cat([home_UC[kept], moved_UC[part_U == part]]).tolist()
    is_mine = moved_UC[:, 3] == rank
    moved = dict(zip(moved_UC[is_mine, 0].tolist(), part_U[is_mine].tolist(), strict=True))
    return UnitTable(
        [PlacedUnit(first, size, length, owner, part) for first, size, length, owner in sorted(trained)],
        [
            PlacedUnit(first, size, length, rank, moved.get(first, home))
            for (first, size, length), home in zip(mine, homes, strict=True)
        ],
    )


def _moved(
    given_UC: torch.Tensor, part: int, loads: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of the units that all ranks give away, and the data-parallel rank each goes to."""
    counts = [row[0] for row in rows_of_ranks([len(given_UC)], device)]
    if not any(counts):
        return given_UC, given_UC[:, 0]
    origin_U1 = torch.full((len(given_UC), 1), part)
    table_UC = tables_of_ranks(torch.cat([given_UC, origin_U1], dim=1).int(), counts, device).long()
    first_U, _, length_U, _, origin_U = table_UC.unbind(1)
    left = torch.tensor(loads).index_add_(0, origin_U, -length_U)
    return table_UC[:, :COLUMNS], places_of(length_U, first_U, left.tolist())
