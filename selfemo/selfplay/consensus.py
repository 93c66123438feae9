"""Votes over a group of answers: the labels that win, and how far the answers agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from selfemo.emotions.answer import MAX_LABELS, Answer, Reading
from selfemo.emotions.similarity import SmoothedIoU


@dataclass(frozen=True)
class Consensus:
    """The vote of a group's samples."""

    labels: tuple[str, ...]
    """Winning labels, primary first; empty only if no sample was in the grammar."""
    votes: tuple[tuple[str, int], ...]
    """(label, samples that named it), most votes first."""
    answers: int
    """Number of samples in the grammar."""
    agreement: float
    """Mean pairwise smoothed IoU over all samples; a pair with a format failure counts 0."""


def vote(readings: Sequence[Reading], score: SmoothedIoU) -> Consensus:
    """Vote label by label: every answer gives one vote to each label it names.

    A label wins with more than half of the answers. If no label has that many, the one with most votes wins
    alone. At most three win. Ties are broken by the votes as primary label, then alphabetically, so that the
    result does not depend on the order of samples.
    """
    answers = [reading for reading in readings if isinstance(reading, Answer)]
    named = Counter(label for answer in answers for label in answer.labels)
    primary = Counter(answer.primary for answer in answers)
    ranked = sorted(named, key=lambda label: (-named[label], -primary[label], label))
    winners = [label for label in ranked if 2 * named[label] > len(answers)] or ranked[:1]
    votes = tuple((label, named[label]) for label in ranked)
    return Consensus(tuple(winners[:MAX_LABELS]), votes, len(answers), score.mean_pairwise(readings))
