"""A group's rewards: S samples x C named components, with what the algorithm needs to weigh the group.

Components stay apart until the advantage is computed, so that a log shows which one moved, and a per-component advantage is possible:

    recognizer   alignment (times the label's frequency weight), consistency (behind its gate), format
    responder    expression (behind the reply's gates), format
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from selfemo.config import RewardConfig
from selfemo.corpora.conversation import Conversation
from selfemo.emotions.affinity import build_affinity
from selfemo.emotions.answer import FormatFailure, Reading
from selfemo.emotions.similarity import SmoothedIoU
from selfemo.rewards.components import alignment, answer_format, consistency, consistency_gate, expression, reply_format
from selfemo.rewards.frequency import frequency_weights, label_shares
from selfemo.selfplay.records import Group

RECOGNIZER_COMPONENTS = ("alignment", "consistency", "format")
RESPONDER_COMPONENTS = ("expression", "format")


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

    def score_group(self, group: Group) -> ScoredGroup:
        """The rewards of one group under this run's configuration."""
        return score_group(group, self.config, self.score, self.label_weights)


def score_group(group: Group, config: RewardConfig, score: SmoothedIoU, label_weights: Mapping[str, float]) -> ScoredGroup:
    """The rewards of one group.

    Args:
        label_weights: from `frequency_weights`, over the closed label set.
    """
    return _score_recognizer(group, config, score, label_weights) if group.role == "recognizer" else _score_responder(group, config, score)


def _score_recognizer(group: Group, config: RewardConfig, score: SmoothedIoU, label_weights: Mapping[str, float]) -> ScoredGroup:
    readings: list[Reading] = [sample.reading or FormatFailure("empty") for sample in group.samples]
    scores = [alignment(reading, group.gold or group.consensus.labels, score) for reading in readings]
    gate = not config.consistency_gate or consistency_gate(group.consensus, group.gold, config.consistency_low, config.consistency_high)
    weight = label_weights[group.gold[0]] if group.gold else 1.0
    return ScoredGroup(
        group=group,
        components=RECOGNIZER_COMPONENTS,
        weights=(config.alignment_weight, config.consistency_weight, config.format_weight),
        rewards=tuple(
            (weight * scores[i], consistency(readings, i, score) if gate else 0.0, answer_format(reading))
            for i, reading in enumerate(readings)
        ),
        scores=tuple(scores),
        gate=gate,
        frequency_weight=weight,
    )


def _score_responder(group: Group, config: RewardConfig, score: SmoothedIoU) -> ScoredGroup:
    scores = [expression(sample.reading, group.target or (), score) for sample in group.samples]
    formats = [reply_format(sample.gates) for sample in group.samples]
    return ScoredGroup(
        group=group,
        components=RESPONDER_COMPONENTS,
        weights=(config.expression_weight, config.format_weight),
        rewards=tuple(zip(scores, formats, strict=True)),
        scores=tuple(scores),
        gate=any(formats),
        frequency_weight=1.0,
    )
