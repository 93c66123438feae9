"""Evens out the tokens of data-parallel ranks: units move from those above the mean to the lightest ones.

A unit begins at home, the rank that its place in the iteration maps to. That is the place where it was made
if engines and trainer have the same layout, so few samples travel. Every rank computes the same table from
the units' lengths alone, and it does not depend on the engines that made them.
"""

from __future__ import annotations

import heapq

import torch


def home(episode: int, episodes: int, parts: int) -> int:
    """Return the data-parallel rank that an episode's samples begin at: contiguous, equal shares."""
    return ((episode + 1) * parts - 1) // episodes


def even_out(length_U: torch.Tensor, home_U: torch.Tensor, parts: int) -> torch.Tensor:
    """Return int64 [U]: the data-parallel rank of each unit.

    A rank above the mean gives away its longest units that fit into what it has above the mean; each goes to
    the lightest rank then, longest first. So no rank ends above the heaviest at the start, and no more tokens
    move than lie above the mean.

    Args:
        length_U: int64 [U], tokens of each unit.
        home_U: int64 [U], the rank it begins at.
    """
    loads = torch.zeros(parts, dtype=torch.int64).index_add_(0, home_U, length_U).tolist()
    mean = -(-sum(loads) // parts)
    by_length = torch.argsort(length_U, descending=True, stable=True)
    order = by_length[torch.argsort(home_U[by_length], stable=True)]
    ends = torch.bincount(home_U, minlength=parts).cumsum(0).tolist()
    given: list[tuple[int, int]] = []
    for part, load in enumerate(loads):
        above = load - mean
        if above <= 0:
            continue
        mine = order[ends[part - 1] if part else 0 : ends[part]]
        for unit, length in zip(mine.tolist(), length_U[mine].tolist(), strict=True):
            if length <= above:
                given.append((-length, unit))
                above -= length
        loads[part] = mean + above
    part_U = home_U.clone()
    lightest = [(load, part) for part, load in enumerate(loads)]  # the rank breaks ties
    heapq.heapify(lightest)
    for negative_length, unit in sorted(given):
        load, part = lightest[0]
        part_U[unit] = part
        heapq.heapreplace(lightest, (load - negative_length, part))
    return part_U
