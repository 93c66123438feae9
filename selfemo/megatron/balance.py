"""Evens out the tokens of data-parallel ranks: units move from those above the mean to those below it.

A unit begins at home, the rank that its place in the iteration maps to. That is the place where it was made
if engines and trainer have the same layout, so few samples travel. A rank decides alone which of its units
it gives away; all ranks know the loads and the units given away, and compute alike where these go. The result
does not depend on the engines that made the units.
"""

from __future__ import annotations

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

    What ranks lack to the mean is laid end to end, the lightest rank first, and beside it the units, the
    longest first: a unit goes to the rank beside its middle. A rank's first and last unit reach beyond what
    it lacks by half their length at most, so that it ends no more than a unit above the mean, and not above
    the heaviest at the start, which had that unit above it. No more tokens move than lie above the mean.

    Args:
        length_G: int64 [G], tokens of each unit, of `given_away`.
        first_G: int64 [G], its place in the batch; of units alike the first one goes first.
        loads: tokens that each rank keeps; the first of equal ranks is the lightest.
    """
    by_place = torch.argsort(first_G)
    order = by_place[torch.argsort(length_G[by_place], descending=True, stable=True)]
    load_P = torch.tensor(loads)
    lightest = torch.argsort(load_P, stable=True)
    length_S = length_G[order]
    mean = -(-int(load_P.sum() + length_S.sum()) // len(loads))
    ends_P = (mean - load_P[lightest]).clamp(min=0).cumsum(0)
    twice_middle_S = 2 * length_S.cumsum(0) - length_S
    part_G = torch.empty_like(order)
    part_G[order] = lightest[torch.searchsorted(2 * ends_P, twice_middle_S, right=True)]
    return part_G
