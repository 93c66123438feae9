"""Asks every model of a study once and keeps the answers: statistics and plots then need no model.

All models of a study share one engine if they share a shape, so twenty models cost one start-up.
Replies are read by the seed's SFT start, which no variant trained further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from selfemo.corpora.problems import raise_first
from selfemo.evaluation.evaluate import Recognizer, Task, evaluate_model, smoothed_iou
from selfemo.evaluation.results import write_json
from selfemo.evaluation.run import corpus_of
from selfemo.evaluation.turns import evaluation_turns
from selfemo.inference.finished_model import Engines, FinishedModel, find_model
from tools.study.plan import START
from tools.study.runs import StudyRun

SAMPLING_SEED = 1


@dataclass(frozen=True)
class ModelAnswers:
    """The answers of one model on one split."""

    variant: str
    seed: int
    predicted: tuple[str, ...]
    """Primary label per turn, or metrics.NO_ANSWER."""
    siou: float
    label_entropy: float
    neutral_share: float
    expression: float | None
    """Mean smoothed IoU of its replies as the SFT start reads them. None for the start itself, which
    would judge itself.
    """
    trained_as: str = ""
    """`StudyRun.trained_as` of the run that was asked."""


@dataclass(frozen=True)
class SplitAnswers:
    """The answers of every model on one split."""

    corpus: str
    split: str
    labels: tuple[str, ...]
    gold: tuple[str, ...]
    dialogues: tuple[str, ...]
    models: tuple[ModelAnswers, ...]
    limit: int = 0
    """Number of turns asked about, from the split's first on; 0: all."""

    def of(self, variant: str) -> tuple[ModelAnswers, ...]:
        """Return the variant's models, by seed."""
        return tuple(
            sorted((model for model in self.models if model.variant == variant), key=lambda model: model.seed)
        )


def ask_all(
    runs: Sequence[StudyRun],
    split: str,
    limit: int,
    kept: Path,
    engines: Engines,
    tell: Callable[[str], None],
) -> SplitAnswers:
    """Let every trained model read a split and answer it. A run whose answers are kept is not asked again.

    Args:
        runs: complete ones, the start of every seed among them.
        limit: only the first N turns; 0 for all.
        kept: file of answers, written after every model, so that nothing is asked twice.
    """
    first = find_model(runs[0].model)
    fmt, place = corpus_of("", first)
    corpus = fmt.read(place, raise_first)
    turns = evaluation_turns(corpus.split(split), limit)
    task = Task(turns, corpus.labels, smoothed_iou(first, corpus.labels), "generate", 0, SAMPLING_SEED)
    asked = SplitAnswers(corpus.name, split, corpus.labels, task.gold, task.dialogues, (), limit)
    earlier = load_answers(kept) if kept.exists() else asked
    models = {
        (model.seed, model.variant): model for model in earlier.models if replace(earlier, models=()) == asked
    }
    readers = {run.seed: find_model(run.model) for run in runs if run.variant == START}
    for run in runs:
        answered = models.get((run.seed, run.variant))
        if answered is None or answered.trained_as != run.trained_as:
            tell(f"evaluating {run.directory} on {split}")
            models[run.seed, run.variant] = _ask(run, readers[run.seed], task, engines)
            save_answers(kept, replace(asked, models=tuple(models.values())))
    return replace(asked, models=tuple(models[run.seed, run.variant] for run in runs))


def _ask(run: StudyRun, reader: FinishedModel, task: Task, engines: Engines) -> ModelAnswers:
    model = find_model(run.model)
    recognizer = Recognizer(reader, engines.generator(reader)) if run.variant != START else None
    report = evaluate_model(model, engines.generator(model), task, recognizer)
    figures = report.recognition.classification
    return ModelAnswers(
        variant=run.variant,
        seed=run.seed,
        predicted=report.recognition.predicted,
        siou=report.recognition.siou,
        label_entropy=figures.label_entropy,
        neutral_share=figures.neutral_share,
        expression=report.expression.siou if report.expression else None,
        trained_as=run.trained_as,
    )


def save_answers(path: Path, answers: SplitAnswers) -> None:
    """Write as JSON, whole or not at all."""
    write_json(path, asdict(answers))


def load_answers(path: Path) -> SplitAnswers:
    """Read the file that `save_answers` wrote."""
    answers: SplitAnswers = TypeAdapter(SplitAnswers).validate_json(path.read_bytes())
    return answers
