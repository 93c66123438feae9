"""Adds up figures over ranks exactly, so that a figure does not depend on which rank had which value.

A float is an integer times 2 ** -1074. Sums of such integers are exact in any order; one rounding at the end
gives what math.fsum gives on one rank.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from selfemo.process import watchdog

if TYPE_CHECKING:  # records of a run can be made without torch
    import torch

SCALE_BITS = 1074
LIMB_BITS = 32
LIMBS = (SCALE_BITS + 1024 + 64) // LIMB_BITS + 1
"""Limbs of the largest sum: of any 2 ** 64 floats."""
MASK = (1 << LIMB_BITS) - 1


class OneRank:
    """Totals of the values that this process has."""

    def sums(self, columns: Sequence[Iterable[float]]) -> list[float]:
        """Add up each column, rounded once."""
        return [math.fsum(column) for column in columns]

    def counts(self, counts: Sequence[int]) -> list[int]:
        """Add up each count."""
        return list(counts)

    def largest(self, values: Sequence[int]) -> list[int]:
        """Return the largest of each value."""
        return list(values)


class OverRanks(OneRank):
    """Totals over all ranks, on every rank. Every method is collective, with as many values on each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def sums(self, columns: Sequence[Iterable[float]]) -> list[float]:
        """Add up each column over all ranks, rounded once.

        Raises:
            ValueError, OverflowError: a value is not finite; on its rank alone.
        """
        totals = self._reduced([_limbs(_whole(column)) for column in columns])
        return [_rounded(limbs) for limbs in totals]

    def counts(self, counts: Sequence[int]) -> list[int]:
        """Add up each count over all ranks."""
        (totals,) = self._reduced([counts])
        return totals

    def largest(self, values: Sequence[int]) -> list[int]:
        """Return the largest of each value over all ranks."""
        (largest,) = self._reduced([values], largest=True)
        return largest

    def _reduced(self, rows: Sequence[Sequence[int]], largest: bool = False) -> list[list[int]]:
        import torch
        import torch.distributed as dist

        values = torch.tensor(rows, dtype=torch.int64, device=self._device)
        with watchdog.doing("reduction of figures"):
            dist.all_reduce(values, op=dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)
        found: list[list[int]] = values.tolist()
        return found


def _whole(values: Iterable[float]) -> int:
    """Add up floats as integers, in units of 2 ** -SCALE_BITS."""
    total = 0
    for value, times in Counter(values).items():  # of thousands of rewards, few differ
        numerator, denominator = float(value).as_integer_ratio()  # the denominator is a power of two
        total += times * numerator << (SCALE_BITS + 1 - denominator.bit_length())
    return total


def _limbs(whole: int) -> list[int]:
    sign, rest = (-1 if whole < 0 else 1), abs(whole)
    return [sign * (rest >> (LIMB_BITS * place) & MASK) for place in range(LIMBS)]


def _rounded(limbs: Sequence[int]) -> float:
    whole = sum(limb << (LIMB_BITS * place) for place, limb in enumerate(limbs))
    return whole / (1 << SCALE_BITS)  # Python rounds a quotient of integers correctly
