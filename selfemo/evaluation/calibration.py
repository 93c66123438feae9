"""Compares confidence with accuracy: expected calibration error and reliability table of the primary label.

Confidence comes from a group's votes (share of samples whose primary label it is) or from label
likelihoods (softmax over the closed set). Expected calibration error: Guo et al., ICML 2017 (arXiv
1706.04599), equal-width bins.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from selfemo.emotions.answer import Answer, Reading
from selfemo.evaluation.metrics import NO_ANSWER


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions whose confidence lies in (low, high] (the first bin includes 0)."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean confidence; 0 for an empty bin."""
    accuracy: float
    """Share that is right; 0 for an empty bin."""


@dataclass(frozen=True)
class Calibration:
    """The distance between confidence and accuracy."""

    ece: float
    """Mean absolute gap between a bin's confidence and accuracy, weighted by count."""
    bins: tuple[ReliabilityBin, ...]


def calibrate(confidence: Sequence[float], correct: Sequence[bool], bins: int = 10) -> Calibration:
    """Bin predictions by confidence.

    Raises:
        ValueError: no prediction, unequal lengths, or a confidence outside [0, 1].
    """
    if not confidence or len(confidence) != len(correct):
        raise ValueError(
            f"confidence has {len(confidence)} entries and correct {len(correct)}, expected equal "
            "and not empty"
        )
    members: list[list[int]] = [[] for _ in range(bins)]
    for i, value in enumerate(confidence):
        if not 0.0 <= value <= 1.0 + 1e-9:
            raise ValueError(f"confidence[{i}] is {value}, expected a value in [0, 1]")
        members[min(bins - 1, max(0, math.ceil(value * bins - 1e-9) - 1))].append(i)
    rows = []
    for k, chosen in enumerate(members):
        mean = sum(confidence[i] for i in chosen) / len(chosen) if chosen else 0.0
        right = sum(correct[i] for i in chosen) / len(chosen) if chosen else 0.0
        rows.append(ReliabilityBin(k / bins, (k + 1) / bins, len(chosen), mean, right))
    ece = sum(row.count * abs(row.confidence - row.accuracy) for row in rows) / len(confidence)
    return Calibration(ece, tuple(rows))


def vote_confidence(readings: Sequence[Reading]) -> tuple[str, float]:
    """Return the most frequent primary label of a group, and its share of all samples.

    If nothing parsed, (NO_ANSWER, share of failures).
    """
    primary = Counter(reading.primary for reading in readings if isinstance(reading, Answer))
    if not primary:
        return NO_ANSWER, 1.0
    label = min(primary, key=lambda name: (-primary[name], name))
    return label, primary[label] / len(readings)


def likelihood_confidence(label_logprobs: Mapping[str, float]) -> tuple[str, float]:
    """Return the likeliest label and its probability after renormalising over the closed set; logprobs
    in nats.
    """
    label = min(label_logprobs, key=lambda name: (-label_logprobs[name], name))
    return label, 1.0 / sum(math.exp(value - label_logprobs[label]) for value in label_logprobs.values())
