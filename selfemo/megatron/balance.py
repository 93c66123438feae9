"""Evens out the tokens of data-parallel ranks: units move from those above the mean to the lightest ones.

A unit begins at home, the rank that its place in the iteration maps to. That is the place where it was made
if engines and trainer have the same layout, so few samples travel. A rank decides alone which of its units
it gives away; all ranks know the loads and the units given away, and compute alike where these go. The result
does not depend on the engines that made the units.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch


def home(episode: int, episodes: int, parts: int) -> int:
    """Return the data-parallel rank that an episode's samples begin at: contiguous, equal shares."""
    return ((episode + 1) * parts - 1) // episodes


def given_away(length_U: torch.Tensor, above: int) -> list[int]:
    """Choose the units that a rank gives away: the longest ones that fit into what it has above the mean.

    Args:
        length_U: int64 [U], tokens of the units that begin at this rank.
        above: its tokens above the mean of all ranks; may be negative.
    """
    found = []
    if above > 0:
        order = torch.argsort(length_U, descending=True, stable=True)
        for unit, length in zip(order.tolist(), length_U[order].tolist(), strict=True):
            if length <= above:
                found.append(unit)
                above -= length
    return found


def places_of(length_G: torch.Tensor, first_G: torch.Tensor, loads: Sequence[int]) -> torch.Tensor:
    """Return int64 [G]: the rank that each unit given away goes to.

    The longest goes first, to the lightest rank then. So no rank ends above the heaviest at the start, and no
    more tokens move than lie above the mean.

    Args:
        length_G: int64 [G], tokens of each unit.
        first_G: int64 [G], its place in the batch; of units alike the first one goes first.
        loads: tokens that each rank keeps; the first of equal ranks is the lightest.
    """
    by_place = torch.argsort(first_G)
    order = by_place[torch.argsort(length_G[by_place], descending=True, stable=True)]
    lightest = [(load, part) for part, load in enumerate(loads)]
    heapq.heapify(lightest)
    places = []
    for length in length_G[order].tolist():
        load, part = lightest[0]
        places.append(part)
        heapq.heapreplace(lightest, (load + length, part))
    part_G = torch.empty_like(order)
    part_G[order] = torch.tensor(places, dtype=torch.int64)
    return part_G
