"""Evaluates emotion recognition on held-out turns.

Generation is greedy, over a whole split in one call. A model sees earlier turns only, and an answer
outside the grammar is a failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from selfemo.common.seeds import derive_seed
from selfemo.config.schema import SelfPlayConfig
from selfemo.emotions.answer import Answer, FormatFailure, Reading
from selfemo.emotions.similarity import SmoothedIoU
from selfemo.evaluation.metrics import NO_ANSWER, Classification, classify
from selfemo.evaluation.turns import EvaluationTurn
from selfemo.rollout.api import Generator
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.roles import Recognizer

CONTEXT = "causal"
"""Stated in every report: a turn is read with earlier turns only."""


@dataclass(frozen=True)
class RecognitionReport:
    """How well a model reads emotions."""

    classification: Classification
    siou: float
    """Mean smoothed IoU of the answered set with the gold set; a format failure counts 0."""
    exact_match: float
    """Share of turns whose answered set equals the gold set."""
    readings: tuple[Reading, ...] = field(repr=False)
    """The model's answers, one per turn."""
    context: str = CONTEXT

    @property
    def n(self) -> int:
        """Number of turns evaluated."""
        return self.classification.n

    @property
    def accuracy(self) -> float:
        """Share of turns whose primary label is right."""
        return self.classification.accuracy

    @property
    def weighted_f1(self) -> float:
        """F1 averaged over labels by support."""
        return self.classification.weighted_f1

    @property
    def macro_f1(self) -> float:
        """F1 averaged over labels, each with the same weight."""
        return self.classification.macro_f1

    @property
    def format_failure_rate(self) -> float:
        """Share of completions outside the grammar."""
        return self.classification.format_failure_rate

    @property
    def predicted(self) -> tuple[str, ...]:
        """Primary label per turn, or NO_ANSWER."""
        return primary_of(self.readings)


def evaluate_recognition(
    generator: Generator,
    prompts: PromptBuilder,
    turns: Sequence[EvaluationTurn],
    config: SelfPlayConfig,
    score: SmoothedIoU,
) -> RecognitionReport:
    """Read every turn greedily and compare with the annotation.

    Args:
        generator: called once, with one request per turn.
        config: token caps and thinking of an answer.
        score: for the multi-label figure.
    """
    readings = Recognizer(prompts, config).read_last_turns(generator, [turn.context for turn in turns])
    return report_readings(readings, turns, prompts.labels, score)


def report_readings(
    readings: Sequence[Reading], turns: Sequence[EvaluationTurn], labels: Sequence[str], score: SmoothedIoU
) -> RecognitionReport:
    """Make the report of given readings, one per turn.

    They may come from label likelihoods, from votes, or from an earlier evaluation.
    """
    gold = [turn.gold for turn in turns]
    scores = [score.of_reading(reading, truth) for reading, truth in zip(readings, gold, strict=True)]
    exact = [
        isinstance(reading, Answer) and set(reading.labels) == set(truth)
        for reading, truth in zip(readings, gold, strict=True)
    ]
    figures = classify([truth[0] for truth in gold], primary_of(readings), labels)
    return RecognitionReport(figures, sum(scores) / len(scores), sum(exact) / len(exact), tuple(readings))


def read_likeliest(label_logprobs: Sequence[Mapping[str, float]]) -> list[Reading]:
    """Read by label likelihood: per turn, the label with the highest logprob.

    Among equals, the alphabetically first.
    """
    return [Answer((min(row, key=lambda label: (-row[label], label)),)) for row in label_logprobs]


def sample_readings(
    generator: Generator,
    prompts: PromptBuilder,
    turns: Sequence[EvaluationTurn],
    config: SelfPlayConfig,
    run_seed: int,
) -> list[list[Reading]]:
    """Sample G readings per turn, in one call. Vote confidences and calibration are computed from them."""
    size, recognizer = config.recognizer_group_size, Recognizer(prompts, config)
    requests = [
        recognizer.request(prompt, derive_seed(run_seed, "evaluation", i, sample))
        for i, prompt in enumerate(prompts.recognize(turn.context) for turn in turns)
        for sample in range(size)
    ]
    readings = recognizer.read_all(generator, requests)
    return [readings[start : start + size] for start in range(0, len(readings), size)]


def primary_of(readings: Sequence[Reading]) -> tuple[str, ...]:
    """Return the primary label of each reading; NO_ANSWER for a format failure."""
    return tuple(NO_ANSWER if isinstance(reading, FormatFailure) else reading.primary for reading in readings)
