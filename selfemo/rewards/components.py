"""Defines the reward components: name, function, weight and bounds, one value each, in one tuple per role.

The rest is derived from `COMPONENTS`: the columns of the advantages, metrics, curves, samples.jsonl, the
flywheel's records, and the bounds that rewards are checked against. Formulas and their reasons:
docs/method.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from selfemo.config.schema import RewardConfig
from selfemo.emotions.answer import Answer, Reading
from selfemo.emotions.similarity import SmoothedIoU
from selfemo.selfplay.consensus import Consensus
from selfemo.selfplay.records import Group, Role


@dataclass(frozen=True)
class Judged:
    """One group, with everything that a component may look at."""

    group: Group
    readings: tuple[Reading, ...]
    """S readings: a recognizer's own answers, or the recognizer's readings of a responder's replies; a format
    failure if a gate stopped the reply."""
    scores: tuple[float, ...]
    """S plain smoothed IoUs in [0, 1]: with the gold labels or the consensus (recognizer), with the target
    (responder)."""
    gate: bool
    """Recognizer: whether consistency may be paid. Responder: whether any reply was admissible."""
    frequency_weight: float
    """Weight of the group's gold label; 1 if nobody annotated it."""
    score: SmoothedIoU
    """Smoothed IoU with this run's affinity and smoothing."""
    views: tuple[str, ...] = ()
    """S names: the view of each sample."""

    @cached_property
    def consistencies(self) -> tuple[float, ...]:
        """c_i of the S samples, computed once: the reward and the ranking of views both use it."""
        return consistencies(self.readings, self.score, self.views)


@dataclass(frozen=True)
class Component:
    """One term of a role's reward."""

    name: str
    """Name in metrics, curves, samples.jsonl and the flywheel; no other component of the role has it."""
    weight: str | float
    """Factor in the total: a number, or the name of the RewardConfig field that holds it."""
    function: Callable[[Judged], Sequence[float]]
    """Returns S values for a group of S samples, before `weight`. Pure, because every rank scores its share
    of the groups."""
    bounds: tuple[str | float, str | float] = (0.0, 1.0)
    """Smallest and largest value: numbers, or names of RewardConfig fields. A value outside ends the run, as
    a bug."""

    def weight_in(self, config: RewardConfig) -> float:
        """Look up the weight in a run's configuration."""
        return _number(self.weight, config)

    def bounds_in(self, config: RewardConfig) -> tuple[float, float]:
        """Look up (smallest, largest) value in a run's configuration."""
        low, high = self.bounds
        return _number(low, config), _number(high, config)


def _number(value: str | float, config: RewardConfig) -> float:
    return float(getattr(config, value)) if isinstance(value, str) else value


def alignment(reading: Reading, reference: Collection[str], score: SmoothedIoU) -> float:
    """a_i: smoothed IoU with the gold set, or with the consensus if nobody annotated the turn.

    0 for a format failure or an empty reference.
    """
    return score.of_reading(reading, reference) if reference else 0.0


def consistencies(
    readings: Sequence[Reading], score: SmoothedIoU, views: Sequence[str] = ()
) -> tuple[float, ...]:
    """c_i: mean smoothed IoU of each sample with the others of its group.

    A format failure on either side counts 0; a lone sample has 0.

    Args:
        views: the view of each sample; if they are several, the others are the samples of other views.
    """
    several = len(set(views)) > 1
    found = []
    for index, row in enumerate(score.rows(readings)):
        if several:
            others = [value for value, view in zip(row, views, strict=True) if view != views[index]]
        else:
            others = row[:index] + row[index + 1 :]
        found.append(sum(others) / len(others) if others else 0.0)
    return tuple(found)


def consistency_gate(consensus: Consensus, given: Collection[str] | None, low: float, high: float) -> bool:
    """gate(g): decide whether a group's agreement may be paid.

    With labels given, by annotators or by a teacher: only if the consensus' primary label is one of them,
    since agreement on a wrong label deserves nothing. Without: only if the mean pairwise smoothed IoU lies
    in [low, high], since below there is nothing to agree on, and above the group has collapsed to one
    answer. If it were paid everywhere, the bonus would reward the majority label.
    """
    if not consensus.labels:
        return False
    if given:
        return consensus.labels[0] in given
    return low <= consensus.agreement <= high


def expression(reading: Reading | None, target: Collection[str], score: SmoothedIoU) -> float:
    """Smoothed IoU between the target set and the recognizer's reading of a reply.

    0 if a gate failed, since the reply was not read then.
    """
    return score.of_reading(reading, target) if reading is not None else 0.0


def answer_format(reading: Reading) -> float:
    """f_i of a recognizer: 1 for an answer in the grammar, else 0."""
    return float(isinstance(reading, Answer))


def reply_format(gates: Collection[str]) -> float:
    """f_i of a responder: 1 for a reply that fails no gate, else 0."""
    return float(not gates)


def paid_consistency(group: Judged) -> list[float]:
    """c_i of the S samples; all 0 if the group's gate is closed."""
    return list(group.consistencies) if group.gate else [0.0] * len(group.readings)


COMPONENTS: dict[Role, tuple[Component, ...]] = {
    "recognizer": (
        Component(
            "alignment",
            "alignment_weight",
            lambda g: [g.frequency_weight * s for s in g.scores],
            (0.0, "frequency_cap"),
        ),
        Component("consistency", "consistency_weight", paid_consistency),
        Component("format", "format_weight", lambda g: [answer_format(reading) for reading in g.readings]),
    ),
    "responder": (
        Component("expression", "expression_weight", lambda g: g.scores),
        Component(
            "format", "format_weight", lambda g: [reply_format(sample.gates) for sample in g.group.samples]
        ),
    ),
}
"""The components of each role, in the order of their columns. Add one at the end of its role's tuple:
docs/extending.md."""


def metric_name(component: Component, role: Role) -> str:
    """Name the component's field in metrics.jsonl, without the prefix "reward_".

    It is the component's name, after the role's if both roles have a component of that name.
    """
    shared = all(
        any(other.name == component.name for other in components) for components in COMPONENTS.values()
    )
    return f"{role}_{component.name}" if shared else component.name
