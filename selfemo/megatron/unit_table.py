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
    places = _places(home_UC[given] if ranks_of_part[part][0] == rank else home_UC[:0], part, loads, device)
    kept = torch.ones(len(home_UC), dtype=torch.bool)
    kept[given] = False
    trained = [*map(tuple, home_UC[kept].tolist()), *(row for row, to in places.values() if to == part)]
    return UnitTable(
        [PlacedUnit(*row, part) for row in sorted(trained)],
        [
            PlacedUnit(*row, places[row[0]][1] if row[0] in places else home)
            for row, home in zip(rows, homes, strict=True)
        ],
    )


def _places(
    given_UC: torch.Tensor, part: int, loads: Sequence[int], device: torch.device
) -> dict[int, tuple[tuple[int, ...], int]]:
    """Return (row, the part it goes to) of every unit that some rank gives away, by its first sample."""
    counts = [row[0] for row in rows_of_ranks([len(given_UC)], device)]
    if not any(counts):
        return {}
    origin_U1 = torch.full((len(given_UC), 1), part)
    table = tables_of_ranks(torch.cat([given_UC, origin_U1], dim=1).int(), counts, device).tolist()
    left = list(loads)
    for _, _, length, _, origin in table:
        left[origin] -= length
    places = places_of([(length, first) for first, _, length, _, _ in table], left)
    return {row[0]: (tuple(row[:COLUMNS]), to) for row, to in zip(table, places, strict=True)}
