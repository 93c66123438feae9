"""Test the bound on the logprob gap: what it is, what ends a run, and what the user is told."""

from __future__ import annotations

from dataclasses import fields

import pytest

from selfemo.config.load import load_config
from selfemo.config.logprob_gap import GapBounds, gap_bounds
from selfemo.megatron.step_stats import PolicyStats, StepStats, TokenGap
from selfemo.run.logprob_gap import gap_problem

BOUNDS = GapBounds(largest=0.004, mean=0.0001)


def stats(largest: float, mean: float) -> PolicyStats:
    figures = dict.fromkeys((field.name for field in fields(PolicyStats)), 0.0)
    at = TokenGap(sample=1, place=1, token=6, trainer=-1.85, engine=-0.25)
    step = StepStats(1.0, 0.5, True, 3, 1e-5)
    given = {"step": step, "logprob_gap_max": largest, "logprob_gap_mean": mean, "largest_gap": at}
    return PolicyStats(**figures | given)


def problem(largest: float, mean: float) -> str:
    return gap_problem(stats(largest, mean), BOUNDS, lambda ids: f"<{ids[0]}>")


@pytest.mark.parametrize(
    ("overrides", "largest", "mean"),
    [
        ((), 2**-8, 2**-13),
        (("rollout.dtype=bfloat16",), 4.0, 0.125),
        (("train.dtype=bfloat16",), 4.0, 0.125),
        (("selfplay.temperature=0.5",), 2**-7, 2**-12),
        (("selfplay.temperature=2",), 2**-8, 2**-13),
        (("rollout.max_logprob_gap=0.3",), 0.3, 2**-13),
        (("rollout.max_mean_logprob_gap=0.3", "selfplay.temperature=0.5"), 2**-7, 0.3),
    ],
)
def test_the_bound_follows_from_the_coarser_dtype_and_the_temperature(overrides, largest, mean):
    assert gap_bounds(load_config(None, overrides)) == GapBounds(largest, mean)


@pytest.mark.parametrize(("dtype", "largest", "mean"), [("float32", 1e-4, 5e-6), ("bfloat16", 0.35, 0.014)])
def test_an_honest_run_stays_below_a_tenth_of_the_bounds(dtype, largest, mean):
    """The gaps are the largest that were measured (SmolLM2-135M and models of the demo, on CPUs)."""
    bounds = gap_bounds(load_config(None, (f"train.dtype={dtype}", f"rollout.dtype={dtype}")))
    assert largest <= bounds.largest / 10
    assert mean <= bounds.mean / 8


def test_a_gap_within_both_bounds_is_no_problem():
    assert problem(BOUNDS.largest, BOUNDS.mean) == ""
    not_applied = float("nan")
    assert problem(not_applied, not_applied) == ""


def test_a_large_gap_is_told_with_token_position_and_both_values():
    assert problem(1.6, 0.00001) == (
        "engine and trainer disagree: token 6 ('<6>') at place 1 of the completion of sample 1 has logprob "
        "-0.25 in the engine and -1.85 in the trainer, 1.6 nats apart, above rollout.max_logprob_gap=0.004"
    )


def test_a_large_mean_is_a_problem_of_its_own():
    told = problem(0.003, 0.002)
    assert "token 6" in told
    assert "and 0.002 on average, above rollout.max_mean_logprob_gap=0.0001" in told
