"""From scored groups to training samples: what a group's weight is, and that weights never leak into the ranking inside a group."""

from __future__ import annotations

from dataclasses import replace

import pytest

from selfemo.config import AlgorithmConfig, RewardConfig, RunConfig
from selfemo.grpo.advantages import loss_config, training_samples
from selfemo.rewards.scoring import score_group
from tests.helpers.groups import SCORE, recognizer_group, responder_group
from tests.helpers.scripted import LABELS

RARE, COMMON = "joy", "neutral"
WEIGHTS = {label: 3.0 if label == RARE else 0.5 for label in LABELS}
RANKED = ["joy", "neutral", "joy", "joy, neutral"]


def scored(*groups):
    return [score_group(group, RewardConfig(), SCORE, WEIGHTS) for group in groups]


def samples(groups, **algorithm):
    return training_samples(groups, RunConfig(algorithm=AlgorithmConfig(**algorithm)))


def weights(groups, **algorithm):
    return [sample.weight for sample in samples(groups, **algorithm)]


def test_groups_weigh_alike_unless_asked():
    groups = scored(recognizer_group(RANKED, (RARE,)), responder_group([("a b", "joy"), ("c d", "neutral")], ("joy",)))
    assert weights(groups) == [1.0] * 6


def test_frequency_weighs_groups_and_not_samples():
    rare, common = scored(recognizer_group(RANKED, (RARE,)), recognizer_group(RANKED, (COMMON,)))
    assert weights([rare, common], weight_by_frequency=True) == [3.0] * 4 + [0.5] * 4
    plain, scaled = samples([rare]), samples([rare], weight_by_frequency=True)
    assert [s.advantage for s in plain] == [s.advantage for s in scaled]


def test_nobody_annotated_nothing_to_weigh_by():
    groups = scored(recognizer_group(RANKED, None), responder_group([("a b", "joy"), ("c d", "neutral")], (RARE,)))
    assert weights(groups, weight_by_frequency=True) == [1.0] * 6


def test_consistency_and_frequency_multiply():
    (group,) = scored(recognizer_group(RANKED, (RARE,)))
    agreement = group.group.consensus.agreement
    assert 0 < agreement < 1
    found = weights([group], weight_by_frequency=True, weight_by_consistency=True)
    assert found == pytest.approx([3.0 * agreement] * 4)


def test_a_group_that_ranks_nothing_stays_out_whatever_its_weight():
    groups = scored(recognizer_group(["joy", "joy", "joy"], (RARE,)))
    assert weights(groups, weight_by_frequency=True) == [0.0] * 3


@pytest.mark.parametrize("loss", ["grpo", "dapo", "gspo"])
def test_only_self_grpo_weighs_groups(loss):
    groups = scored(recognizer_group(RANKED, (RARE,)))
    assert weights(groups, loss=loss, weight_by_frequency=True, weight_by_consistency=True) == [1.0] * 4


def test_normalisation_is_the_presets_unless_named():
    config = RunConfig()
    named = {
        loss: loss_config(replace(config, algorithm=AlgorithmConfig(loss=loss))).advantage.normalise for loss in ("self_grpo", "dr_grpo")
    }
    assert named == {"self_grpo": "std", "dr_grpo": "none"}
    assert loss_config(replace(config, algorithm=AlgorithmConfig(normalise="leave_one_out"))).advantage.normalise == "leave_one_out"
