"""A group's rewards: S samples x C named components, with what the algorithm needs to weigh the group.

Components stay apart until the advantage is computed, so that a log shows which one moved, and a per-component advantage is possible:

    recognizer   alignment (times the label's frequency weight), consistency (behind its gate), format
    responder    expression (behind the reply's gates), format

What scoring computes is apart from the group it belongs to: it is small, so ranks can share out the work and exchange `Figures` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from selfemo.config import RewardConfig
from selfemo.corpora.conversation import Conversation
from selfemo.dealing import Deal, one_by_one
from selfemo.emotions.affinity import build_affinity
from selfemo.emotions.answer import FormatFailure, Reading
from selfemo.emotions.similarity import SmoothedIoU
from selfemo.rewards.components import alignment, answer_format, consistency, consistency_gate, expression, reply_format
from selfemo.rewards.frequency import frequency_weights, label_shares
from selfemo.selfplay.records import Group

RECOGNIZER_COMPONENTS = ("alignment", "consistency", "format")
RESPONDER_COMPONENTS = ("expression", "format")


class Figures(NamedTuple):
    """What scoring computes of a group; a plain tuple of numbers, because it is sent between ranks by the hundred thousand."""

    rewards: tuple[tuple[float, ...], ...]
    scores: tuple[float, ...]
    gate: bool
    frequency_weight: float


@dataclass(frozen=True)
class ScoredGroup:
    """A group with its rewards."""

    group: Group = field(repr=False)
    components: tuple[str, ...]
    """Names of the C components."""
    weights: tuple[float, ...]
    """Weight of each component in the total; C entries."""
    rewards: tuple[tuple[float, ...], ...]
    """S x C, before `weights`; consistency is already gated, alignment already times `frequency_weight`."""
    scores: tuple[float, ...]
    """S plain smoothed IoUs (alignment or expression) in [0, 1], without frequency weight: what ranks the samples."""
    gate: bool
    """Whether consistency was paid (recognizer); whether any reply was admissible (responder)."""
    frequency_weight: float
    """Weight of the group's gold label; 1 where nobody annotated it."""

    @property
    def totals(self) -> tuple[float, ...]:
        """S weighted sums over components."""
        return tuple(sum(w * r for w, r in zip(self.weights, row, strict=True)) for row in self.rewards)

    @property
    def alignment_range(self) -> float:
        """Largest minus smallest of `scores`: near 0, the group ranks nothing."""
        return max(self.scores) - min(self.scores)

    @property
    def best(self) -> int:
        """Index of the sample with the highest score, the first of equals."""
        return max(range(len(self.scores)), key=lambda i: (self.scores[i], -i))

    def component(self, name: str) -> tuple[float, ...]:
        """One column of `rewards`.

        Raises:
            ValueError: the group has no component of that name.
        """
        column = self.components.index(name)
        return tuple(row[column] for row in self.rewards)


class Rewards:
    """The reward functions of a run: configuration, smoothed IoU and label weights."""

    def __init__(self, config: RewardConfig, train: Sequence[Conversation], labels: Sequence[str]) -> None:
        """Args: train: training split, for label shares; labels: the closed label set.

        Raises:
            UserError: reward.affinity=circumplex with a label that has no place on it.
        """
        self.config = config
        self.score = SmoothedIoU(build_affinity(config.affinity, labels), config.smoothing)
        self.label_shares = label_shares(train, labels)
        self.label_weights = frequency_weights(self.label_shares, config.frequency_exponent, config.frequency_cap)

    def score_groups(self, groups: Sequence[Group], deal: Deal = one_by_one) -> list[ScoredGroup]:
        """The rewards of every group under this run's configuration, in order; the same whoever computed which."""
        return [scored_group(group, figures, self.config) for group, figures in zip(groups, deal(self.figures, groups), strict=True)]

    def figures(self, group: Group) -> Figures:
        """One group's."""
        return figures_of(group, self.config, self.score, self.label_weights)


def score_group(group: Group, config: RewardConfig, score: SmoothedIoU, label_weights: Mapping[str, float]) -> ScoredGroup:
    """The rewards of one group.

    Args:
        label_weights: from `frequency_weights`, over the closed label set.
    """
    return scored_group(group, figures_of(group, config, score, label_weights), config)


def scored_group(group: Group, figures: Figures, config: RewardConfig) -> ScoredGroup:
    """A group with the figures that were computed of it."""
    if group.role == "recognizer":
        weights: tuple[float, ...] = (config.alignment_weight, config.consistency_weight, config.format_weight)
        return ScoredGroup(group, RECOGNIZER_COMPONENTS, weights, *figures)
    return ScoredGroup(group, RESPONDER_COMPONENTS, (config.expression_weight, config.format_weight), *figures)


def figures_of(group: Group, config: RewardConfig, score: SmoothedIoU, label_weights: Mapping[str, float]) -> Figures:
    """What `score_group` computes."""
    return _recognizer_figures(group, config, score, label_weights) if group.role == "recognizer" else _responder_figures(group, score)


def _recognizer_figures(group: Group, config: RewardConfig, score: SmoothedIoU, label_weights: Mapping[str, float]) -> Figures:
    readings: list[Reading] = [sample.reading or FormatFailure("empty") for sample in group.samples]
    scores = [alignment(reading, group.gold or group.consensus.labels, score) for reading in readings]
    gate = not config.consistency_gate or consistency_gate(group.consensus, group.gold, config.consistency_low, config.consistency_high)
    weight = label_weights[group.gold[0]] if group.gold else 1.0
    rewards = tuple(
        (weight * scores[i], consistency(readings, i, score) if gate else 0.0, answer_format(reading)) for i, reading in enumerate(readings)
    )
    return Figures(rewards, tuple(scores), gate, weight)


def _responder_figures(group: Group, score: SmoothedIoU) -> Figures:
    scores = [expression(sample.reading, group.target or (), score) for sample in group.samples]
    formats = [reply_format(sample.gates) for sample in group.samples]
    return Figures(tuple(zip(scores, formats, strict=True)), tuple(scores), any(formats), 1.0)
