"""Test the guards.

Skipped steps are counted and end a run that learns nothing; figures out of bounds are errors.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import pytest
from safetensors.torch import load_file

from selfemo.common.errors import UserError
from selfemo.config.schema import RewardConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.megatron.step_stats import PolicyStats, StepStats
from selfemo.records.manifest import Progress
from selfemo.rewards.scoring import score_group
from selfemo.run.guards import check_ratio, check_rewards, skipped_step
from tests.helpers.groups import SCORE, recognizer_group
from tests.helpers.scripted import LABELS

GOOD = StepStats(1.0, 0.5, True, 9, 1e-5)
BAD = StepStats(math.nan, 0.5, False, 9, 1e-5)
BATCH = [
    TrainingSample((1, 2), (3,), (-0.5,), 1.5, 1.0),
    TrainingSample((4,), (5, 6), (-0.1, -0.2), math.inf, 1.0),
]


def test_a_good_step_ends_a_row():
    progress = Progress("sft", 4, weight_version=1)
    for applied in (False, False, True, False, False):
        progress = progress.after_step(applied)
    assert progress == Progress("sft", 4, weight_version=1, skipped_steps=4, skipped_in_a_row=2)


def test_too_many_in_a_row_stop_the_run_with_the_batch(tmp_path):
    assert "skipped on all ranks, 1 in a row" in skipped_step(
        "iteration 5", BAD, dict(enumerate(BATCH)), 1, 2, tmp_path / "bad"
    )
    assert not (tmp_path / "bad").exists()
    with pytest.raises(UserError, match="iteration 5: loss nan"):
        skipped_step("iteration 5", BAD, dict(enumerate(BATCH)), 2, 2, tmp_path / "bad")
    assert load_file(tmp_path / "bad" / "samples.safetensors")["00001.completion_ids"].tolist() == [5, 6]
    assert json.loads((tmp_path / "bad" / "batch.json").read_text())["samples"][1]["advantage"] == "inf"


def policy(ratio: float) -> PolicyStats:
    figures = dict.fromkeys((field.name for field in fields(PolicyStats)), 0.0)
    return PolicyStats(**{**figures, "step": GOOD, "ratio_mean": ratio, "logprob_gap_max": 1e-6})


def test_a_ratio_other_than_one_on_policy_is_an_error():
    check_ratio(policy(1.0), on_policy=True)
    check_ratio(policy(1.3), on_policy=False)
    for ratio, on_policy in ((1.01, True), (math.nan, True), (1e4, False), (0.0, False)):
        with pytest.raises(ArithmeticError, match="ratio out of bounds"):
            check_ratio(policy(ratio), on_policy)


def test_a_reward_out_of_bounds_names_its_place():
    scored = score_group(
        recognizer_group(["joy", "joy", "anger"], ("joy",)), RewardConfig(), SCORE, dict.fromkeys(LABELS, 1.0)
    )
    check_rewards([scored], RewardConfig())
    for value in (math.nan, -0.1, 5.0):
        broken = replace(
            scored, rewards=(scored.rewards[0], (value, *scored.rewards[1][1:]), scored.rewards[2])
        )
        with pytest.raises(ArithmeticError, match="alignment of recognizer sample 1, iteration 3, episode 1"):
            check_rewards([broken], RewardConfig())
