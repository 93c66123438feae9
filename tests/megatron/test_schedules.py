"""Test that learning rates are pure functions of the step, as a resume requires."""

from __future__ import annotations

from itertools import pairwise

import pytest

from selfemo.megatron.optimizer import warmup_cosine, warmup_linear


def test_linear_warms_up_to_the_peak_and_ends_at_its_share():
    rates = [warmup_linear(step, 10, 4, 2.0, 0.25) for step in range(10)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[-1] == pytest.approx(0.5)
    falls = [a - b for a, b in pairwise(rates[4:])]
    assert falls == pytest.approx([1.5 / 5] * 5)


def test_a_share_of_one_is_constant():
    assert {warmup_linear(step, 7, 0, 3.0, 1.0) for step in range(9)} == {3.0}


def test_one_step_runs_at_the_peak():
    assert warmup_linear(0, 1, 0, 3.0, 0.0) == 3.0


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_cosine_ends_near_its_share(share):
    rates = [warmup_cosine(step, 100, 10, 1.0, share) for step in range(100)]
    assert max(rates) == rates[10] == 1.0
    assert rates[-1] == pytest.approx(share, abs=1e-3)
    assert all(a >= b for a, b in pairwise(rates[10:]))
