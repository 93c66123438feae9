"""Evaluates one model on one split, and compares two models on the same turns.

The result holds every figure that `selfemo eval` reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from selfemo.emotions.affinity import build_affinity
from selfemo.emotions.answer import Answer, Reading
from selfemo.emotions.similarity import SmoothedIoU
from selfemo.evaluation.calibration import Calibration, calibrate, likelihood_confidence, vote_confidence
from selfemo.evaluation.expression import ExpressionReport, evaluate_expression
from selfemo.evaluation.intervals import Interval, bootstrap, mean_interval, paired_bootstrap
from selfemo.evaluation.options import Scoring
from selfemo.evaluation.recognition import (
    RecognitionReport,
    evaluate_recognition,
    read_likeliest,
    report_readings,
    sample_readings,
)
from selfemo.evaluation.turns import EvaluationTurn
from selfemo.evaluation.voting import (
    Voted,
    VotingReport,
    prompts_in_view,
    vote_by_generation,
    vote_by_likelihood,
)
from selfemo.inference.finished_model import FinishedModel
from selfemo.rollout.api import Generator
from selfemo.selfplay.prompts import PromptBuilder
from selfemo.selfplay.views import PLAIN
from selfemo.tokens.encoder import ChatEncoder


@dataclass(frozen=True)
class Task:
    """The questions that every model of an evaluation is asked. Fields without a docstring: see
    EvaluationOptions.
    """

    turns: tuple[EvaluationTurn, ...] = field(repr=False)
    labels: tuple[str, ...]
    score: SmoothedIoU = field(repr=False)
    """One score for all models, whatever reward each was trained with."""
    scoring: Scoring
    votes: int
    seed: int
    views: tuple[str, ...] = ()

    @property
    def gold(self) -> tuple[str, ...]:
        """Primary gold label per turn."""
        return tuple(turn.gold[0] for turn in self.turns)

    @property
    def dialogues(self) -> tuple[str, ...]:
        """Dialogue key per turn."""
        return tuple(turn.dialogue for turn in self.turns)


@dataclass(frozen=True)
class Recognizer:
    """A frozen model that reads another's replies."""

    model: FinishedModel
    generator: Generator


@dataclass(frozen=True)
class ModelReport:
    """Every figure of one model."""

    model: FinishedModel
    recognition: RecognitionReport
    intervals: tuple[Interval, ...]
    """Intervals of accuracy, weighted F1, macro F1, sIoU and exact match."""
    calibration: Calibration | None
    confidence: str
    """Definition of the confidence in `calibration`, for readers."""
    expression: ExpressionReport | None
    read_by: FinishedModel | None
    """The recognizer that read the replies of `expression`."""
    voting: VotingReport | None = None
    """What the vote of several views reads; None if no views vote."""


def smoothed_iou(model: FinishedModel, labels: Sequence[str]) -> SmoothedIoU:
    """Build the smoothed IoU of a model's settings over a label set."""
    reward = model.config.reward
    return SmoothedIoU(build_affinity(reward.affinity, labels), reward.smoothing)


def prompts_of(model: FinishedModel, labels: tuple[str, ...]) -> PromptBuilder:
    """Build prompts as the model was trained on them. UserError if its tokenizer cannot be used."""
    corpus, encoder = model.config.corpus, ChatEncoder(model.path)
    return PromptBuilder(
        encoder,
        labels,
        corpus.history_turns,
        corpus.max_turn_tokens,
        model.config.selfplay.thinking,
        encoder.opens_thinking,
    )


def evaluate_model(
    model: FinishedModel, generator: Generator | None, task: Task, recognizer: Recognizer | None
) -> ModelReport:
    """Evaluate one model.

    Args:
        generator: holds the model's weights; None if label likelihoods are scored and no expression is
            asked for.
        recognizer: reads the model's replies; None leaves expression out.
    """
    prompts = prompts_of(model, task.labels)
    calibration: Calibration | None
    if task.scoring == "likelihood":
        recognition, calibration, voted = _by_likelihood(model, prompts, task)
        confidence = "label likelihood, renormalised over the label set"
    else:
        if generator is None:
            raise ValueError("generator is None: scoring by generation needs one")
        recognition = evaluate_recognition(generator, prompts, task.turns, model.config.selfplay, task.score)
        calibration = _by_votes(model, generator, prompts, task) if task.votes else None
        voted = None
        if task.views:
            voted = vote_by_generation(
                generator,
                prompts,
                task.turns,
                model.config.selfplay,
                task.score,
                task.views,
                task.seed,
                plain=recognition.readings,
            )
        confidence = (
            f"share of {task.votes} sampled answers (temperature "
            f"{model.config.selfplay.temperature:g}) with the voted label first"
        )
    expression = None
    if recognizer is not None:
        if generator is None:
            raise ValueError("generator is None: expression needs one")
        expression = evaluate_expression(
            generator,
            recognizer.generator,
            prompts,
            task.turns,
            model.config.selfplay,
            task.score,
            task.seed,
            recognizer_prompts=prompts_of(recognizer.model, task.labels),
            recognizer_config=recognizer.model.config.selfplay,
        )
    reader = recognizer.model if recognizer else None
    return ModelReport(
        model,
        recognition,
        figure_intervals(recognition, task),
        calibration,
        confidence if calibration else "",
        expression,
        reader,
        _voting(recognition, voted, task) if voted else None,
    )


def compare_models(first: ModelReport, second: ModelReport, task: Task) -> tuple[Interval, ...]:
    """Compute intervals of first - second on the same turns.

    Figures: accuracy, weighted F1, macro F1, sIoU and exact match.
    """
    return figure_differences(first.recognition, second.recognition, task)


def figure_intervals(report: RecognitionReport, task: Task) -> tuple[Interval, ...]:
    """Compute intervals of accuracy, weighted F1, macro F1, sIoU and exact match."""
    means = turn_scores(report.readings, task)
    return (
        *bootstrap(task.gold, report.predicted, task.dialogues, task.seed),
        *(mean_interval(name, values, task.dialogues, task.seed) for name, values in means.items()),
    )


def figure_differences(
    first: RecognitionReport, second: RecognitionReport, task: Task
) -> tuple[Interval, ...]:
    """Compute paired intervals of first - second, for the same figures."""
    labelled = paired_bootstrap(task.gold, first.predicted, second.predicted, task.dialogues, task.seed)
    ours, theirs = (turn_scores(report.readings, task) for report in (first, second))
    means = []
    for name, values in ours.items():
        differences = [a - b for a, b in zip(values, theirs[name], strict=True)]
        means.append(mean_interval(name, differences, task.dialogues, task.seed))
    return (*labelled, *means)


def turn_scores(readings: Sequence[Reading], task: Task) -> dict[str, list[float]]:
    """Compute sIoU and exact match of every turn."""
    pairs = [(reading, turn.gold) for reading, turn in zip(readings, task.turns, strict=True)]
    return {
        "siou": [task.score.of_reading(reading, gold) for reading, gold in pairs],
        "exact_match": [
            float(isinstance(reading, Answer) and set(reading.labels) == set(gold)) for reading, gold in pairs
        ],
    }


def _voting(plain: RecognitionReport, voted: Voted, task: Task) -> VotingReport:
    """Report the vote beside each view, and its differences to the plain reading."""
    together, *alone = (
        report_readings(readings, task.turns, task.labels, task.score)
        for readings in (voted.together, *voted.alone)
    )
    intervals, differences = figure_intervals(together, task), figure_differences(together, plain, task)
    return VotingReport(task.views, together, intervals, differences, tuple(alone))


def _by_likelihood(
    model: FinishedModel, prompts: PromptBuilder, task: Task
) -> tuple[RecognitionReport, Calibration, Voted | None]:
    # loads transformers' model, which only this way of scoring needs
    from selfemo.evaluation.likelihood import AnswerScorer

    prompts = prompts.without_thinking()
    answers = {label: prompts.answer_ids([label]) for label in task.labels}
    scorer = AnswerScorer(model)
    rows = scorer.score([prompts.recognize(turn.context) for turn in task.turns], answers)
    recognition = report_readings(read_likeliest(rows), task.turns, task.labels, task.score)
    columns = [
        rows
        if view == PLAIN.name
        else scorer.score(prompts_in_view(prompts, task.turns, view, task.seed), answers)
        for view in task.views
    ]
    voted = vote_by_likelihood(columns) if columns else None
    return recognition, _calibrate([likelihood_confidence(row) for row in rows], task), voted


def _by_votes(model: FinishedModel, generator: Generator, prompts: PromptBuilder, task: Task) -> Calibration:
    config = replace(model.config.selfplay, recognizer_group_size=task.votes)
    groups = sample_readings(generator, prompts, task.turns, config, task.seed)
    return _calibrate([vote_confidence(group) for group in groups], task)


def _calibrate(confident: Sequence[tuple[str, float]], task: Task) -> Calibration:
    correct = [label == gold for (label, _), gold in zip(confident, task.gold, strict=True)]
    return calibrate([share for _, share in confident], correct)
