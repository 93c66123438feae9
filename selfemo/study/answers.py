"""What every model of a study answers, asked once and kept: statistics and plots need no model after this.

All models of a study share one engine where they share a shape, so twenty models cost one start-up. Replies are read by the seed's
SFT start, which no variant trained further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from selfemo.corpora.problems import raise_first
from selfemo.evaluation.evaluate import Recognizer, Task, evaluate_model, smoothed_iou
from selfemo.evaluation.results import write_json
from selfemo.evaluation.run import corpus_of
from selfemo.evaluation.turns import evaluation_turns
from selfemo.finished_model import Engines, find_model
from selfemo.study.plan import START
from selfemo.study.runs import StudyRun

SAMPLING_SEED = 1


@dataclass(frozen=True)
class ModelAnswers:
    """One model on one split."""

    variant: str
    seed: int
    predicted: tuple[str, ...]
    """Primary label per turn, or metrics.NO_ANSWER."""
    siou: float
    label_entropy: float
    neutral_share: float
    expression: float | None
    """Mean smoothed IoU of its replies as the SFT start reads them; None for the start itself, which would judge itself."""


@dataclass(frozen=True)
class SplitAnswers:
    """Every model on one split."""

    corpus: str
    split: str
    labels: tuple[str, ...]
    gold: tuple[str, ...]
    dialogues: tuple[str, ...]
    models: tuple[ModelAnswers, ...]
    limit: int = 0
    """Only the split's first N turns were asked about; 0: all."""

    def of(self, variant: str) -> tuple[ModelAnswers, ...]:
        """The variant's models, by seed."""
        return tuple(sorted((model for model in self.models if model.variant == variant), key=lambda model: model.seed))


def ask_all(runs: Sequence[StudyRun], split: str, limit: int, engines: Engines, tell: Callable[[str], None]) -> SplitAnswers:
    """Let every trained model read a split and answer it.

    Args:
        runs: complete ones, the start of every seed among them.
        limit: only the first N turns; 0 for all.
    """
    first = find_model(runs[0].model)
    fmt, place = corpus_of("", first)
    corpus = fmt.read(place, raise_first)
    turns = evaluation_turns(corpus.split(split), limit)
    task = Task(turns, corpus.labels, smoothed_iou(first, corpus.labels), "generate", 0, SAMPLING_SEED)
    readers = {run.seed: find_model(run.model) for run in runs if run.variant == START}
    answers = []
    for run in runs:
        tell(f"evaluating {run.directory} on {split}")
        model, reader = find_model(run.model), readers[run.seed]
        recognizer = Recognizer(reader, engines.generator(reader)) if run.variant != START else None
        report = evaluate_model(model, engines.generator(model), task, recognizer)
        figures = report.recognition.classification
        answers.append(
            ModelAnswers(
                variant=run.variant,
                seed=run.seed,
                predicted=report.recognition.predicted,
                siou=report.recognition.siou,
                label_entropy=figures.label_entropy,
                neutral_share=figures.neutral_share,
                expression=report.expression.siou if report.expression else None,
            )
        )
    return SplitAnswers(corpus.name, split, corpus.labels, task.gold, task.dialogues, tuple(answers), limit)


def save_answers(path: Path, answers: SplitAnswers) -> None:
    """Write as JSON, whole or not at all."""
    write_json(path, asdict(answers))


def load_answers(path: Path) -> SplitAnswers:
    """What `save_answers` wrote."""
    answers: SplitAnswers = TypeAdapter(SplitAnswers).validate_json(path.read_bytes())
    return answers
