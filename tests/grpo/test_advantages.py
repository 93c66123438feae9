"""Test the way from scored groups to training samples.

The weight of a group never changes ranks inside it.
"""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import mean, stdev

import pytest
import torch

from selfemo.config.schema import AlgorithmConfig, RewardConfig, RunConfig, SelfPlayConfig
from selfemo.grpo.advantages import advantage_config, loss_config, training_samples, with_advantages
from selfemo.kernels import PRESETS, group_advantages
from selfemo.rewards.scoring import ScoredGroup, score_group
from tests.helpers.groups import SCORE, recognizer_group, responder_group
from tests.helpers.scripted import LABELS

RARE, COMMON = "joy", "neutral"
WEIGHTS = {label: 3.0 if label == RARE else 0.5 for label in LABELS}
RANKED = ["joy", "neutral", "joy", "joy, neutral"]


def scored(*groups):
    return [score_group(group, RewardConfig(), SCORE, WEIGHTS) for group in groups]


def samples(groups, **algorithm):
    return training_samples(with_advantages(groups, AlgorithmConfig(**algorithm)))


def weights(groups, **algorithm):
    return [sample.weight for sample in samples(groups, **algorithm)]


def test_groups_weigh_alike_unless_asked():
    groups = scored(
        recognizer_group(RANKED, (RARE,)), responder_group([("a b", "joy"), ("c d", "neutral")], ("joy",))
    )
    assert weights(groups) == [1.0] * 6


def test_frequency_weighs_groups_and_not_samples():
    rare, common = scored(recognizer_group(RANKED, (RARE,)), recognizer_group(RANKED, (COMMON,)))
    assert weights([rare, common], weight_by_frequency=True) == [3.0] * 4 + [0.5] * 4
    plain, scaled = samples([rare]), samples([rare], weight_by_frequency=True)
    assert [s.advantage for s in plain] == [s.advantage for s in scaled]


def test_nobody_annotated_nothing_to_weigh_by():
    groups = scored(
        recognizer_group(RANKED, None), responder_group([("a b", "joy"), ("c d", "neutral")], (RARE,))
    )
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


def test_views_that_disagree_firmly_stay_out_and_a_majority_of_views_ranks():
    """Fails if the range threshold looks at the vote's winner, which a tie leaves to the alphabet."""
    two, three = ["plain", "plain", "short", "short"], ["plain", "short", "labels"]
    tied, ranked = scored(
        recognizer_group(["joy", "joy", "anger", "anger"], None, views=two),
        recognizer_group(["joy", "joy", "anger"], None, views=three),
    )
    assert weights([tied, ranked]) == [0.0] * 4 + [1.0] * 3
    won, too, lost = (sample.advantage for sample in samples([ranked]))
    assert won == too > 0 > lost
    agreement = SCORE(("joy",), ("anger",)) * 2 / 3 + 1 / 3
    assert weights([ranked], weight_by_consistency=True) == pytest.approx([agreement] * 3), "across views"


@pytest.mark.parametrize("loss", ["grpo", "dapo", "gspo"])
def test_only_self_grpo_weighs_groups(loss):
    groups = scored(recognizer_group(RANKED, (RARE,)))
    assert weights(groups, loss=loss, weight_by_frequency=True, weight_by_consistency=True) == [1.0] * 4


def test_normalisation_is_the_presets_unless_named():
    named = {
        loss: loss_config(AlgorithmConfig(loss=loss), SelfPlayConfig()).advantage.normalise
        for loss in ("self_grpo", "dr_grpo")
    }
    assert named == {"self_grpo": "std", "dr_grpo": "none"}
    chosen = loss_config(AlgorithmConfig(normalise="leave_one_out"), SelfPlayConfig())
    assert chosen.advantage.normalise == "leave_one_out"


def test_the_loss_gets_every_choice_of_the_configuration():
    chosen = AlgorithmConfig(
        dual_clip=3.0,
        kl_estimator="k2",
        kl_beta=0.5,
        clip_low=0.1,
        clip_high=0.4,
        truncated_importance_cap=1.5,
    )
    loss = loss_config(chosen, SelfPlayConfig())
    for name in ("dual_clip", "kl_estimator", "kl_beta", "clip_low", "clip_high", "truncated_importance_cap"):
        assert getattr(loss, name) == getattr(chosen, name)
    assert loss_config(AlgorithmConfig(), SelfPlayConfig()).dual_clip is None


def test_components_can_be_normalised_by_themselves():
    """Compute by hand: each component's deviation over its own spread, then the weighted sum.

    A constant component counts for nothing.
    """
    (group,) = scored(recognizer_group([*RANKED, ""], (RARE,)))
    weight_of = {"alignment": 1.0, "consistency": 0.2, "format": 0.1}
    wanted = [0.0] * len(group.rewards)
    for name, values in zip(group.names, zip(*group.rewards)):
        if (spread := stdev(values)) > 0:
            wanted = [
                total + weight_of[name] * (value - mean(values)) / spread
                for total, value in zip(wanted, values)
            ]
    found = [sample.advantage for sample in samples([group], normalise_per_component=True)]
    assert found == pytest.approx(wanted, abs=1e-4)
    assert found != pytest.approx([sample.advantage for sample in samples([group])], abs=0.05)


def of_one_matrix(groups: list[ScoredGroup], config: RunConfig) -> list[tuple[float, float]]:
    """Compute (advantage, weight) of every sample from one matrix with a column for each component
    of either role.

    A column is 0 where a role lacks the component.
    """
    names = ("alignment", "consistency", "expression", "format")
    reward, advantage = config.reward, advantage_config(config.algorithm)
    weights = (
        reward.alignment_weight,
        reward.consistency_weight,
        reward.expression_weight,
        reward.format_weight,
        0.0,
    )
    rows, bounds = [], [0]
    for group in groups:
        named = (dict(zip(group.names, row, strict=True)) for row in group.rewards)
        rows += [
            (*(row.get(name, 0.0) for name in names), score)
            for row, score in zip(named, group.scores, strict=True)
        ]
        bounds.append(len(rows))
    found = group_advantages(
        torch.tensor(rows, dtype=torch.float32),
        torch.tensor(bounds),
        torch.tensor(weights, dtype=torch.float32),
        config=advantage
        if advantage.range_component is None
        else replace(advantage, range_component=len(names)),
    )
    return list(zip(found.advantage_S.tolist(), found.weight_S.tolist(), strict=True))


@pytest.mark.parametrize("loss", PRESETS)
def test_each_roles_own_columns_give_what_one_matrix_of_all_gives_to_the_bit(loss):
    """Compare random groups of both roles, mixed, of random sizes and rewards: 300 for each loss."""
    rng = random.Random(7)
    config = RunConfig(
        algorithm=AlgorithmConfig(loss=loss), reward=RewardConfig(consistency_weight=0.37, format_weight=0.11)
    )
    groups = []
    for _ in range(150):
        answers = [
            rng.choice(["", "joy", "anger", "joy, neutral", "neutral, anger"])
            for _ in range(rng.randint(2, 9))
        ]
        replies = [
            ("a b", rng.choice([None, "", "joy", "joy, anger", "neutral"])) for _ in range(rng.randint(2, 5))
        ]
        groups.append(recognizer_group(answers, rng.choice([None, ("joy",), ("neutral", "anger")])))
        groups.append(responder_group(replies, ("joy", "anger")))
    rng.shuffle(groups)
    scored_groups = [score_group(group, config.reward, SCORE, WEIGHTS) for group in groups]
    found = [
        (s.advantage, s.weight) for s in training_samples(with_advantages(scored_groups, config.algorithm))
    ]
    assert found == of_one_matrix(scored_groups, config)
    assert len({advantage for advantage, _ in found}) > 100
