"""Asks every model of a study once and keeps the answers: statistics and plots then need no model.

All models of a study share one engine if they share a shape, so twenty models cost one start-up.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from selfemo.common.errors import UserError
from selfemo.corpora.problems import raise_first
from selfemo.evaluation.evaluate import ModelReport, Recognizer, Task, evaluate_model, smoothed_iou
from selfemo.evaluation.run import corpus_of
from selfemo.evaluation.turns import evaluation_turns
from selfemo.inference.finished_model import Engines, find_model
from tools.study.answers import (
    ModelAnswers,
    Questions,
    SplitAnswers,
    kept_models,
    load_answers,
    reader_name,
    reader_of,
    save_answers,
    unanswered,
)
from tools.study.runs import StudyRun

SAMPLING_SEED = 1


def ask_all(
    runs: Sequence[StudyRun],
    questions: Questions,
    kept: Path,
    engines: Engines,
    tell: Callable[[str], None],
) -> SplitAnswers:
    """Let every trained model read a split and answer it. A run whose answers are kept is not asked again.

    Args:
        runs: complete ones of one labelled share, the start of every seed among them.
        kept: file of answers, written after every model, so that nothing is asked twice.
    """
    held = [run for run in runs if run.has_model]
    if not held:  # records alone (tools/study/records.py)
        return _all_kept(runs, questions, kept)
    first = find_model(held[0].model)
    fmt, place = corpus_of("", first)
    corpus = fmt.read(place, raise_first)
    turns = evaluation_turns(corpus.split(questions.split), questions.limit)
    score = smoothed_iou(first, corpus.labels)
    task = Task(turns, corpus.labels, score, "generate", 0, SAMPLING_SEED)
    asked = SplitAnswers(
        corpus.name,
        questions.split,
        corpus.labels,
        task.gold,
        task.dialogues,
        (),
        questions.limit,
        questions.reader,
    )
    models: dict[tuple[int, str], ModelAnswers] = {}
    if kept.exists() and replace(earlier := load_answers(kept), models=()) == asked:
        models = {(model.seed, model.variant): model for model in earlier.models}
    for run in unanswered(runs, questions, models):
        _check_model(run)
        tell(f"evaluating {run.directory} on {questions.split}" + (" in views" if run.untrained else ""))
        models[run.seed, run.variant] = _ask(run, reader_of(run, runs, questions.reader), task, engines)
        save_answers(kept, replace(asked, models=tuple(models.values())))
    return replace(asked, models=tuple(models[run.seed, run.variant] for run in runs))


def _all_kept(runs: Sequence[StudyRun], questions: Questions, kept: Path) -> SplitAnswers:
    models = kept_models(kept, questions)
    for run in unanswered(runs, questions, models):
        _check_model(run)
    return replace(load_answers(kept), models=tuple(models[run.seed, run.variant] for run in runs))


def _check_model(run: StudyRun) -> None:
    if not run.has_model:
        raise UserError(
            f"{run.model}: not here, only its run's records, but it is to be asked: remove "
            f"{run.directory.parent}, and the whole draw is trained again"
        )


def _ask(run: StudyRun, reader: StudyRun | None, task: Task, engines: Engines) -> ModelAnswers:
    began, model = time.monotonic(), find_model(run.model)
    recognizer = None
    if reader is not None:
        read_by = find_model(reader.model)
        recognizer = Recognizer(read_by, engines.generator(read_by))
    task = replace(task, votes=run.votes, views=run.views)
    report = evaluate_model(model, engines.generator(model), task, recognizer)
    read = report.voting.recognition if run.untrained and report.voting else report.recognition
    return ModelAnswers(
        variant=run.variant,
        seed=run.seed,
        predicted=read.predicted,
        siou=read.siou,
        label_entropy=read.classification.label_entropy,
        neutral_share=read.classification.neutral_share,
        expression=report.expression.siou if report.expression else None,
        trained_as=run.trained_as,
        calibration=report.calibration.ece if report.calibration else None,
        agreement=_agreement(report, task),
        views=run.views,
        votes=run.votes,
        read_by=reader_name(run, reader),
        seconds=time.monotonic() - began,
    )


def _agreement(report: ModelReport, task: Task) -> float | None:
    """Return the mean over turns of the smoothed IoU of every two views' answers."""
    if report.voting is None:
        return None
    columns = [alone.readings for alone in report.voting.alone]
    views = report.voting.views
    return statistics.mean(task.score.mean_pairwise(row, views) for row in zip(*columns, strict=True))
