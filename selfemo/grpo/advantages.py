"""Computes advantages, and turns scored groups into training samples.

Groups straddle micro-batches and data-parallel ranks, so a loss that normalised inside a micro-batch would
depend on the layout. A group never straddles engines, and its advantages depend on its own rewards alone: the
ranks of the engine that played it compute them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch

from selfemo.config.schema import AlgorithmConfig, SelfPlayConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.kernels import PRESETS, AdvantageConfig, GroupAdvantages, LossConfig, group_advantages
from selfemo.rewards.scoring import ScoredGroup

SCORE_COLUMN = 0
"""Column of the values that rank a group's samples, before the components' columns. Its weight in rewards is
0; the range gate reads it."""


def loss_config(algorithm: AlgorithmConfig, play: SelfPlayConfig) -> LossConfig:
    """Build the kernels' configuration of `algorithm`.

    It is a preset with this run's clips, KL, temperature and range threshold.
    """
    changes: dict[str, Any] = {
        name: getattr(algorithm, name)
        for name in (
            "clip_low",
            "clip_high",
            "dual_clip",
            "kl_beta",
            "kl_estimator",
            "truncated_importance_cap",
        )
        if getattr(algorithm, name) is not None
    }
    changes |= {"entropy_weight": algorithm.entropy_weight, "temperature": play.temperature}
    if PRESETS[algorithm.loss].needs_max_length:
        changes["max_length"] = max(play.max_recognizer_tokens, play.max_utterance_tokens)
    return LossConfig.preset(algorithm.loss, advantage=advantage_config(algorithm), **changes)


def advantage_config(algorithm: AlgorithmConfig) -> AdvantageConfig:
    """Build the kernels' configuration of advantages: the preset's, with this run's range threshold."""
    preset = PRESETS[algorithm.loss]
    normalise, alone = algorithm.normalise or preset.advantage.normalise, algorithm.normalise_per_component
    advantage = replace(preset.advantage, normalise=normalise, per_component=alone)
    if preset.gated:
        advantage = replace(
            advantage, range_threshold=algorithm.range_threshold, range_component=SCORE_COLUMN
        )
    return advantage


def with_advantages(groups: Sequence[ScoredGroup], algorithm: AlgorithmConfig) -> list[ScoredGroup]:
    """Compute the advantages of every group's samples, and its weight in the loss; the order stays."""
    return carrying(groups, advantages_of(groups, algorithm))


def carrying(
    groups: Sequence[ScoredGroup], found: Sequence[tuple[tuple[float, ...], float]]
) -> list[ScoredGroup]:
    """Return the groups with what `advantages_of` found for each."""
    return [
        group.with_advantages(advantages, weight)
        for group, (advantages, weight) in zip(groups, found, strict=True)
    ]


def advantages_of(
    groups: Sequence[ScoredGroup], algorithm: AlgorithmConfig
) -> list[tuple[tuple[float, ...], float]]:
    """Return each group's advantages, one per sample, and its weight in the loss.

    Groups that have the same components are computed together, so a component that only some groups have is a
    column of those groups alone.
    """
    found: list[tuple[tuple[float, ...], float]] = [((), 0.0)] * len(groups)
    alike: dict[tuple[object, ...], list[int]] = {}
    for index, group in enumerate(groups):
        alike.setdefault((group.components, group.weights), []).append(index)
    for indices in alike.values():
        mine = [groups[index] for index in indices]
        computed = _advantages(mine, algorithm)
        by_group = computed.advantage_S.split([len(group.rewards) for group in mine])
        for index, advantage_S, weight in zip(indices, by_group, computed.weight_G.tolist(), strict=True):
            found[index] = tuple(advantage_S.tolist()), weight
    return found


def _advantages(groups: Sequence[ScoredGroup], algorithm: AlgorithmConfig) -> GroupAdvantages:
    rows = [
        (score, *rewards)
        for group in groups
        for score, rewards in zip(group.ranked_by, group.rewards, strict=True)
    ]
    return group_advantages(
        torch.tensor(rows, dtype=torch.float32),
        torch.tensor([0, *accumulate(len(group.rewards) for group in groups)]),
        torch.tensor((0.0, *groups[0].weights), dtype=torch.float32),
        config=advantage_config(algorithm),
        group_weight_G=torch.tensor(
            [group_weight(group, algorithm) for group in groups], dtype=torch.float32
        ),
    )


def group_weight(group: ScoredGroup, algorithm: AlgorithmConfig) -> float:
    """Weigh a group before the range threshold: 1, or the scale that a gated loss gives it."""
    weight = 1.0
    if not PRESETS[algorithm.loss].gated:
        return weight
    if algorithm.weight_by_consistency:
        weight *= group.group.consensus.agreement
    if algorithm.weight_by_frequency:
        weight *= group.frequency_weight
    return weight


def training_samples(groups: Sequence[ScoredGroup]) -> list[TrainingSample]:
    """Make one training sample per rollout sample, in order, with its advantage and its group's weight.

    Args:
        groups: from `with_advantages`.
    """
    return [
        TrainingSample(
            sample.prompt_ids,
            sample.completion_ids,
            sample.rollout_logprobs,
            advantage,
            group.loss_weight,
            group.group.episode,
        )
        for group in groups
        for sample, advantage in zip(group.group.samples, group.advantages, strict=True)
    ]
