"""From scored groups to training samples: what a group's weight is, and that weights never leak into the ranking inside a group."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean, stdev

import pytest

from selfemo.config import AlgorithmConfig, RewardConfig, RunConfig
from selfemo.grpo.advantages import loss_config, training_samples
from selfemo.rewards.scoring import score_group
from tests.rewards.groups import SCORE, recognizer_group, responder_group
from tests.selfplay.scripted import LABELS

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


def test_the_loss_gets_every_choice_of_the_configuration():
    chosen = AlgorithmConfig(dual_clip=3.0, kl_estimator="k2", kl_beta=0.5, clip_low=0.1, clip_high=0.4, truncated_importance_cap=1.5)
    loss = loss_config(RunConfig(algorithm=chosen))
    for name in ("dual_clip", "kl_estimator", "kl_beta", "clip_low", "clip_high", "truncated_importance_cap"):
        assert getattr(loss, name) == getattr(chosen, name)
    assert loss_config(RunConfig()).dual_clip is None


def test_components_can_be_normalised_by_themselves():
    """By hand: each component's deviations in units of its own spread, then the weighted sum; a constant component counts for nothing."""
    (group,) = scored(recognizer_group([*RANKED, ""], (RARE,)))
    weight_of = {"alignment": 1.0, "consistency": 0.2, "format": 0.1}
    wanted = [0.0] * len(group.rewards)
    for name, values in zip(group.components, zip(*group.rewards)):
        if (spread := stdev(values)) > 0:
            wanted = [total + weight_of[name] * (value - mean(values)) / spread for total, value in zip(wanted, values)]
    found = [sample.advantage for sample in samples([group], normalise_per_component=True)]
    assert found == pytest.approx(wanted, abs=1e-4)
    assert found != pytest.approx([sample.advantage for sample in samples([group])], abs=0.05)
