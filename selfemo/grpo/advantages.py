"""Scored groups into training samples: advantages are computed here, once, over the whole rollout batch.

Groups straddle micro-batches and data-parallel ranks, so a loss that normalised inside a micro-batch would depend on the
layout. Every rank computes the advantages of every group from the same rewards; they are a few floats per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from selfemo.config import RunConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.kernels import GroupAdvantages, LossConfig, group_advantages
from selfemo.rewards.scoring import ScoredGroup

COMPONENTS = ("alignment", "consistency", "expression", "format")
"""Columns of the reward matrix; a role leaves those it does not have at 0. One more column holds the plain score."""
SCORE_COLUMN = len(COMPONENTS)


def loss_config(config: RunConfig) -> LossConfig:
    """The kernels' configuration of `algorithm`: a published preset with this run's clips, KL, temperature and range threshold."""
    algorithm = config.algorithm
    changes: dict[str, object] = {
        name: getattr(algorithm, name)
        for name in ("clip_low", "clip_high", "dual_clip", "kl_beta", "kl_estimator", "truncated_importance_cap")
        if getattr(algorithm, name) is not None
    }
    changes |= {"entropy_weight": algorithm.entropy_weight, "temperature": config.selfplay.temperature}
    if algorithm.loss == "dr_grpo":
        changes["max_length"] = max(config.selfplay.max_recognizer_tokens, config.selfplay.max_utterance_tokens)
    preset = LossConfig.preset(algorithm.loss, **changes)
    normalise, alone = algorithm.normalise or preset.advantage.normalise, algorithm.normalise_per_component
    advantage = replace(preset.advantage, normalise=normalise, per_component=alone)
    if algorithm.loss == "self_grpo":
        advantage = replace(advantage, range_threshold=algorithm.range_threshold, range_component=SCORE_COLUMN)
    return replace(preset, advantage=advantage)


def batch_advantages(groups: Sequence[ScoredGroup], config: RunConfig) -> GroupAdvantages:
    """Group-relative advantages of every sample, groups in order; S samples in all."""
    rows = [row for group in groups for row in _reward_rows(group)]
    bounds = [0]
    for group in groups:
        bounds.append(bounds[-1] + len(group.rewards))
    reward = config.reward
    weights = (reward.alignment_weight, reward.consistency_weight, reward.expression_weight, reward.format_weight, 0.0)
    return group_advantages(
        torch.tensor(rows, dtype=torch.float32),
        torch.tensor(bounds),
        torch.tensor(weights, dtype=torch.float32),
        config=loss_config(config).advantage,
        group_weight_G=torch.tensor([group_weight(group, config) for group in groups], dtype=torch.float32),
    )


def group_weight(group: ScoredGroup, config: RunConfig) -> float:
    """How much a group counts, before the range threshold: 1, or what SELF-GRPO scales it by."""
    algorithm, weight = config.algorithm, 1.0
    if algorithm.loss != "self_grpo":
        return weight
    if algorithm.weight_by_consistency:
        weight *= group.group.consensus.agreement
    if algorithm.weight_by_frequency:
        weight *= group.frequency_weight
    return weight


def training_samples(groups: Sequence[ScoredGroup], config: RunConfig) -> list[TrainingSample]:
    """One training sample per rollout sample, in order, with its advantage and its group's weight."""
    advantages = batch_advantages(groups, config)
    samples = [sample for group in groups for sample in group.group.samples]
    return [
        TrainingSample(sample.prompt_ids, sample.completion_ids, sample.rollout_logprobs, advantage, weight)
        for sample, advantage, weight in zip(samples, advantages.advantage_S.tolist(), advantages.weight_S.tolist(), strict=True)
    ]


def _reward_rows(group: ScoredGroup) -> list[list[float]]:
    """S rows of COMPONENTS and the plain score."""
    rows = []
    for rewards, score in zip(group.rewards, group.scores, strict=True):
        named = dict(zip(group.components, rewards, strict=True))
        rows.append([*(named.get(name, 0.0) for name in COMPONENTS), score])
    return rows
