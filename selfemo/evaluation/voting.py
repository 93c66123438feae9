"""Reads each turn in several views, and adds up the label shares of all views.

This vote needs no training and costs one prompt per view: a baseline for the gain of training over views. It
is reported beside the reading of the plain prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from selfemo.common.seeds import derive_seed
from selfemo.config.schema import SelfPlayConfig
from selfemo.emotions.answer import Answer, FormatFailure, Reading
from selfemo.emotions.similarity import SmoothedIoU
from selfemo.evaluation.intervals import Interval
from selfemo.evaluation.recognition import RecognitionReport, read_likeliest
from selfemo.evaluation.turns import EvaluationTurn
from selfemo.rollout.api import Generator
from selfemo.selfplay.consensus import vote
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.roles import Recognizer
from selfemo.selfplay.views import PLAIN, view_named


@dataclass(frozen=True)
class Voted:
    """What several views read in N turns."""

    alone: tuple[tuple[Reading, ...], ...] = field(repr=False)
    """N readings of each view."""
    together: tuple[Reading, ...] = field(repr=False)
    """N votes; a format failure if no view has an answer."""


@dataclass(frozen=True)
class VotingReport:
    """How well a vote over views reads, beside each view alone."""

    views: tuple[str, ...]
    recognition: RecognitionReport
    """Of the vote."""
    intervals: tuple[Interval, ...]
    differences: tuple[Interval, ...]
    """Paired: the vote minus the plain reading."""
    alone: tuple[RecognitionReport, ...]
    """Of each view, in the order of `views`."""


def prompts_in_view(
    prompts: PromptBuilder, turns: Sequence[EvaluationTurn], view: str, seed: int
) -> list[tuple[int, ...]]:
    """Build every turn's prompt in one view. Draws derive from the seed, the turn's place and the view."""
    return [
        prompts.recognize(turn.context, view_named(view), derive_seed(seed, "evaluation view", i, view))
        for i, turn in enumerate(turns)
    ]


def vote_by_generation(
    generator: Generator,
    prompts: PromptBuilder,
    turns: Sequence[EvaluationTurn],
    config: SelfPlayConfig,
    score: SmoothedIoU,
    views: Sequence[str],
    seed: int,
    plain: Sequence[Reading],
) -> Voted:
    """Vote with one greedy answer per view, all sampled in one call.

    A label's share in a view is 1 if the answer names it.

    Args:
        plain: the turns' greedy readings in the plain view, which is not asked again.
    """
    recognizer = Recognizer(prompts, config)
    asked = [view for view in views if view != PLAIN.name]
    shown = [prompt for view in asked for prompt in prompts_in_view(prompts, turns, view, seed)]
    readings = iter(recognizer.read_all(generator, [recognizer.greedy_request(prompt) for prompt in shown]))
    read = {view: tuple(islice(readings, len(turns))) for view in asked} | {PLAIN.name: tuple(plain)}
    alone = [read[view] for view in views]
    votes = [vote(of_turn, score, views).labels for of_turn in zip(*alone, strict=True)]
    return Voted(
        tuple(alone), tuple(Answer(labels) if labels else FormatFailure("empty") for labels in votes)
    )


def vote_by_likelihood(label_logprobs: Sequence[Sequence[Mapping[str, float]]]) -> Voted:
    """Choose the label with the largest sum of probabilities over views.

    The probabilities of each view are normalised over the label set.

    Args:
        label_logprobs: per view and turn, the logprob of each label in nats.
    """
    alone = tuple(tuple(read_likeliest(column)) for column in label_logprobs)
    summed = []
    for rows in zip(*label_logprobs, strict=True):
        shares = [_shares(row) for row in rows]
        summed.append({label: sum(share[label] for share in shares) for label in rows[0]})
    return Voted(alone, tuple(read_likeliest(summed)))


def _shares(row: Mapping[str, float]) -> dict[str, float]:
    """Convert logprobs to probabilities that sum to 1."""
    highest = max(row.values())
    weights = {label: math.exp(value - highest) for label, value in row.items()}
    total = sum(weights.values())
    return {label: weight / total for label, weight in weights.items()}
