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


def places_of(given: Sequence[tuple[int, int]], loads: Sequence[int]) -> list[int]:
    """Return the rank that each unit given away goes to: longest first, to the lightest rank then.

    So no rank ends above the heaviest at the start, and no more tokens move than lie above the mean.

    Args:
        given: (tokens, place in the batch) of each unit; of units alike the first one goes first.
        loads: tokens that each rank keeps; the first of equal ranks is the lightest.
    """
    lightest = [(load, part) for part, load in enumerate(loads)]
    heapq.heapify(lightest)
    places = [0] * len(given)
    for unit in sorted(range(len(given)), key=lambda unit: (-given[unit][0], given[unit][1])):
        load, part = lightest[0]
        places[unit] = part
        heapq.heapreplace(lightest, (load + given[unit][0], part))
    return places
