"""Test sums over ranks: whichever rank has a value, the total is the exact one, rounded once."""

from __future__ import annotations

import math
from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfemo.process.reduction import OneRank, OverRanks, _limbs, _rounded, _whole

SMALL = st.floats(-1e200, 1e200)


@given(st.lists(st.lists(SMALL, max_size=5), max_size=5))
def test_the_limbs_of_ranks_add_up_to_the_exact_sum(shares):
    added = [
        sum(column) for column in zip(_limbs(0), *(_limbs(_whole(share)) for share in shares), strict=True)
    ]
    assert _rounded(added) == math.fsum(value for share in shares for value in share)


def test_no_limb_of_the_largest_floats_overflows():
    largest = _limbs(_whole([1.7976931348623157e308] * 1000))
    assert max(map(abs, largest)) < 2**32
    assert _rounded(_limbs(_whole([5e-324, -5e-324, 5e-324]))) == 5e-324


VALUES = [1e16, 1.0, -1e16, 0.1, 0.2, -0.3, 1e-300]


def _total(shares: list[list[float]]) -> tuple[list[float], list[int], list[int]]:
    mine, over = shares[torch.distributed.get_rank()], OverRanks(torch.device("cpu"))
    return over.sums([mine, []]), over.counts([len(mine), 2]), over.largest([len(mine)])


@pytest.mark.parametrize("shares", [[VALUES[:3], VALUES[3:]], [VALUES[::2], VALUES[1::2]], [[], VALUES]])
def test_totals_do_not_depend_on_the_dealing(distributed, shares):
    total, none = OneRank().sums([VALUES, []])
    assert total != reduce(add, VALUES), "adding one by one depends on the order"
    longest = max(map(len, shares))
    assert distributed(2, _total, shares) == [([total, none], [len(VALUES), 4], [longest])] * 2
