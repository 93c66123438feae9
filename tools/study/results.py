"""Turns answers into averages over each variant's seeds and differences from each baseline, with
intervals.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from selfemo.evaluation.intervals import Interval, seeded_bootstrap
from tools.study.answers import ModelAnswers, SplitAnswers

BOOTSTRAP_SEED = 1


@dataclass(frozen=True)
class VariantFigures:
    """One variant's figures on one split, averaged over seeds."""

    variant: str
    seeds: tuple[int, ...]
    intervals: tuple[Interval, ...]
    """Intervals of accuracy, weighted F1 and macro F1."""
    siou: float
    neutral_share: float
    label_entropy: float
    expression: float | None


@dataclass(frozen=True)
class Difference:
    """The difference of a variant from a baseline."""

    variant: str
    baseline: str
    intervals: tuple[Interval, ...]


def figures_of(answers: SplitAnswers, variants: Sequence[str]) -> list[VariantFigures]:
    """Average the figures of every variant, in the given order."""
    found = []
    for name in variants:
        models = answers.of(name)
        replies = [model.expression for model in models if model.expression is not None]
        found.append(
            VariantFigures(
                variant=name,
                seeds=tuple(model.seed for model in models),
                intervals=seeded_bootstrap(
                    answers.gold, _predictions(models), None, answers.dialogues, BOOTSTRAP_SEED
                ),
                siou=statistics.mean(model.siou for model in models),
                neutral_share=statistics.mean(model.neutral_share for model in models),
                label_entropy=statistics.mean(model.label_entropy for model in models),
                expression=statistics.mean(replies) if replies else None,
            )
        )
    return found


def differences(answers: SplitAnswers, variants: Sequence[str], baselines: Sequence[str]) -> list[Difference]:
    """Compare every variant with every baseline but itself."""
    return [
        Difference(
            name,
            baseline,
            seeded_bootstrap(
                answers.gold,
                _predictions(answers.of(name)),
                _predictions(answers.of(baseline)),
                answers.dialogues,
                BOOTSTRAP_SEED,
            ),
        )
        for baseline in baselines
        for name in variants
        if name != baseline
    ]


def _predictions(models: Sequence[ModelAnswers]) -> list[tuple[str, ...]]:
    return [model.predicted for model in models]
