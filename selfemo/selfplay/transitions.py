"""Estimates which emotion comes next: the transition prior of a training split.

Beyond an opening nobody annotated what a speaker felt, so the target of a reply is drawn from P(next set |
current primary label), counted in the training split. Without the prior, self-play would choose its own
targets and drift to neutral, or out of the domain.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from selfemo.corpora.conversation import Conversation
from selfemo.emotions.answer import MAX_LABELS

PRIOR_STRENGTH = 5.0
"""Pseudo-transitions per row, distributed as the split's label sets; they decide the row of a current label
that is rarely seen."""


@dataclass(frozen=True)
class TransitionPrior:
    """P(next label set | current primary label)."""

    sets: tuple[tuple[str, ...], ...]
    """Label sets that occur as a next turn, sorted."""
    marginal: tuple[float, ...]
    """Share of each set among next turns; sums to 1."""
    rows: tuple[tuple[str, tuple[float, ...]], ...]
    """(current primary label, probability of each set); each row sums to 1."""

    @classmethod
    def estimate(cls, conversations: Sequence[Conversation]) -> TransitionPrior:
        """Count pairs of consecutive annotated turns, and smooth each row towards the marginal.

        The smoothing adds PRIOR_STRENGTH pseudo-transitions to each row.

        Args:
            conversations: the training split; a turn without labels ends a chain. If it has no transition,
                the prior has no sets, and self-play refuses it if turns are to be generated.
        """
        counts: dict[str, Counter[tuple[str, ...]]] = {}
        for conversation in conversations:
            for current, following in zip(conversation.turns, conversation.turns[1:]):
                if current.labels and following.labels:
                    counts.setdefault(current.labels[0], Counter())[following.labels[:MAX_LABELS]] += 1
        total: Counter[tuple[str, ...]] = sum(counts.values(), Counter())
        sets = tuple(sorted(total))
        marginal = tuple(total[s] / total.total() for s in sets)
        rows = []
        for label, row in sorted(counts.items()):
            mass = row.total() + PRIOR_STRENGTH
            rows.append((label, tuple((row[s] + PRIOR_STRENGTH * m) / mass for s, m in zip(sets, marginal))))
        return cls(sets, marginal, tuple(rows))

    def probabilities(self, current: str | None) -> tuple[float, ...]:
        """Return the row of a current label, or the marginal if the label is None or was never seen."""
        return dict(self.rows).get(current, self.marginal) if current is not None else self.marginal

    def draw(self, current: str | None, rng: random.Random, flattening: float = 0.0) -> tuple[str, ...]:
        """Draw a next label set, with probability proportional to p ** (1 - flattening).

        Args:
            rng: from selfemo.common.seeds.derive_rng; one draw is taken.
            flattening: 0 keeps the prior; 1 draws every set that ever follows with the same probability, so
                that rare emotions are practised.
        """
        weights = [p ** (1.0 - flattening) if p > 0 else 0.0 for p in self.probabilities(current)]
        return rng.choices(self.sets, weights)[0]
