"""Scores groups: S samples x C named components, and the figures that the algorithm weighs the group by.

Components stay apart until the advantage is computed, so that a log shows which one moved, and so that an
advantage per component is possible. `selfemo.rewards.components.COMPONENTS` lists them by role.

The figures are kept apart from the group they belong to. They are small, so ranks share out the work and
exchange `Figures` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from selfemo.config.schema import RewardConfig
from selfemo.corpora.conversation import Conversation
from selfemo.emotions.affinity import build_affinity
from selfemo.emotions.answer import FormatFailure
from selfemo.emotions.similarity import SmoothedIoU
from selfemo.process.dealing import Deal, one_by_one
from selfemo.rewards.components import (
    COMPONENTS,
    Component,
    Judged,
    alignment,
    consistency_gate,
    expression,
)
from selfemo.rewards.frequency import frequency_weights, label_shares
from selfemo.selfplay.records import Group, Role


class Figures(NamedTuple):
    """The scores of one group.

    A plain tuple of numbers, because ranks send each other hundreds of thousands of them.
    """

    rewards: tuple[tuple[float, ...], ...]
    scores: tuple[float, ...]
    gate: bool
    frequency_weight: float
    ranking: tuple[float, ...] = ()


@dataclass(frozen=True)
class ScoredGroup:
    """A group with its rewards, and with its samples' advantages once grpo.advantages has computed them."""

    group: Group = field(repr=False)
    components: tuple[Component, ...] = field(repr=False)
    """The C components of its role."""
    weights: tuple[float, ...]
    """Weight of each component in the total; C entries."""
    rewards: tuple[tuple[float, ...], ...]
    """S x C, before `weights`."""
    scores: tuple[float, ...]
    """S plain smoothed IoUs (alignment or expression) in [0, 1], without frequency weight; they rank the
    samples."""
    gate: bool
    """Recognizer: whether consistency was paid. Responder: whether any reply was admissible."""
    frequency_weight: float
    """Weight of the group's gold label; 1 if nobody annotated it."""
    ranking: tuple[float, ...] = ()
    """`agreement_across_views`: S values that the range threshold looks at; empty for `scores`."""
    advantages: tuple[float, ...] = ()
    """S group-relative advantages; empty until they are computed."""
    loss_weight: float = 1.0
    """Weight of its samples in the loss; 0 for a group that carries no ranking."""

    def with_advantages(self, advantages: tuple[float, ...], loss_weight: float) -> ScoredGroup:
        """Return the group with its samples' advantages and their weight in the loss."""
        figures = (self.rewards, self.scores, self.gate, self.frequency_weight, self.ranking)
        return ScoredGroup(self.group, self.components, self.weights, *figures, advantages, loss_weight)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the C components."""
        return tuple(component.name for component in self.components)

    @property
    def totals(self) -> tuple[float, ...]:
        """Weighted sum over components, for each of S samples."""
        return tuple(sum(w * r for w, r in zip(self.weights, row, strict=True)) for row in self.rewards)

    @property
    def ranked_by(self) -> tuple[float, ...]:
        """S values that the range threshold looks at."""
        return self.ranking or self.scores

    @property
    def alignment_range(self) -> float:
        """Largest minus smallest of `ranked_by`: near 0, the group ranks nothing."""
        return max(self.ranked_by) - min(self.ranked_by)

    @property
    def best(self) -> int:
        """Index of the sample with the highest score, the first of equals."""
        return max(range(len(self.scores)), key=lambda i: (self.scores[i], -i))

    def component(self, name: str) -> tuple[float, ...]:
        """Return one column of `rewards`.

        Raises:
            ValueError: the group has no component of that name.
        """
        column = self.names.index(name)
        return tuple(row[column] for row in self.rewards)


class Rewards:
    """The reward functions of a run: configuration, smoothed IoU and label weights."""

    def __init__(self, config: RewardConfig, train: Sequence[Conversation], labels: Sequence[str]) -> None:
        """Count the training split's labels, and derive their weights.

        Args:
            train: the training split.
            labels: the closed label set.

        Raises:
            UserError: reward.affinity=circumplex with a label that has no place on it.
        """
        self.config = config
        self.score = SmoothedIoU(build_affinity(config.affinity, labels), config.smoothing)
        self.label_shares = label_shares(train, labels)
        self.label_weights = frequency_weights(
            self.label_shares, config.frequency_exponent, config.frequency_cap
        )

    def score_groups(self, groups: Sequence[Group], deal: Deal = one_by_one) -> list[ScoredGroup]:
        """Score groups under this run's configuration, in order.

        Args:
            deal: shares the work out; the result does not depend on it.
        """
        return [
            scored_group(group, figures, self.config)
            for group, figures in zip(groups, deal(self.figures, groups), strict=True)
        ]

    def figures(self, group: Group) -> Figures:
        """Compute one group's figures."""
        return figures_of(group, self.config, self.score, self.label_weights)


def score_group(
    group: Group, config: RewardConfig, score: SmoothedIoU, label_weights: Mapping[str, float]
) -> ScoredGroup:
    """Score one group.

    Args:
        label_weights: from `frequency_weights`, over the closed label set.
    """
    return scored_group(group, figures_of(group, config, score, label_weights), config)


def scored_group(group: Group, figures: Figures, config: RewardConfig) -> ScoredGroup:
    """Join a group with its figures."""
    return ScoredGroup(group, COMPONENTS[group.role], weights_of(group.role, config), *figures)


def weights_of(role: Role, config: RewardConfig) -> tuple[float, ...]:
    """Look up the weight of each of a role's components in a run's configuration."""
    return tuple([component.weight_in(config) for component in COMPONENTS[role]])


def figures_of(
    group: Group, config: RewardConfig, score: SmoothedIoU, label_weights: Mapping[str, float]
) -> Figures:
    """Compute a group's figures, the part of `score_group` that takes time.

    Raises:
        ValueError: a component returns another number of values than the group has samples.
    """
    judged = judge(group, config, score, label_weights)
    columns = []
    for component in COMPONENTS[group.role]:
        columns.append(component.function(judged))
        if len(columns[-1]) != len(group.samples):
            found = f"{len(columns[-1])} values for {len(group.samples)} samples of a {group.role} group"
            raise ValueError(
                f"reward component {component.name} returned {found}: expected one value per sample"
            )
    rewards = tuple(zip(*columns, strict=True))
    return Figures(
        rewards, judged.scores, judged.gate, judged.frequency_weight, agreement_across_views(judged)
    )


def agreement_across_views(judged: Judged) -> tuple[float, ...]:
    """Compute S mean smoothed IoUs with the samples of other views.

    Empty for a group that is annotated or taught, of replies, or in one view. If two views each answer
    firmly, and differently, the vote is a tie, and `scores` would rank one over the other by the alphabet.
    Their agreement with each other is the same number for both, so it ranks nothing.
    """
    if judged.group.role == "responder" or judged.group.given or len(set(judged.views)) < 2:
        return ()
    return judged.consistencies


def judge(
    group: Group, config: RewardConfig, score: SmoothedIoU, label_weights: Mapping[str, float]
) -> Judged:
    """Collect everything that a group's components may look at."""
    readings = tuple(sample.reading or FormatFailure("empty") for sample in group.samples)
    if group.role == "responder":
        scores = tuple(expression(sample.reading, group.target or (), score) for sample in group.samples)
        return Judged(group, readings, scores, any(not sample.gates for sample in group.samples), 1.0, score)
    views = tuple(sample.view for sample in group.samples)
    scores = tuple(
        alignment(reading, group.given or group.consensus.reference(view), score)
        for reading, view in zip(readings, views, strict=True)
    )
    gate = not config.consistency_gate or consistency_gate(
        group.consensus, group.given, config.consistency_low, config.consistency_high
    )
    frequency_weight = label_weights[group.gold[0]] if group.gold else 1.0
    return Judged(group, readings, scores, gate, frequency_weight, score, views)
