"""Holds the answers of every model of a study, and the file that keeps them.

Replies are read by an SFT start, which no variant trained further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from selfemo.evaluation.results import write_json
from tools.study.runs import StudyRun
from tools.study.schema import START, Reader, StudyPlan
from tools.study.stored import read_stored


@dataclass(frozen=True)
class Questions:
    """What every model of a study is asked about a split. Fields without a docstring: see StudyPlan."""

    split: str
    limit: int = 0
    reader: Reader = "own_start"

    @classmethod
    def of(cls, plan: StudyPlan, split: str) -> Questions:
        """Return the questions of a plan."""
        return cls(split, plan.limit, plan.reader)


@dataclass(frozen=True)
class ModelAnswers:
    """The answers of one model on one split."""

    variant: str
    seed: int
    predicted: tuple[str, ...]
    """Primary label per turn, or metrics.NO_ANSWER. Of an untrained variant, its views' vote."""
    siou: float
    label_entropy: float
    neutral_share: float
    expression: float | None
    """Mean smoothed IoU of its replies as an SFT start reads them; None if none does: a start would judge
    itself.
    """
    trained_as: str = ""
    """`StudyRun.trained_as` of the run that was asked."""
    calibration: float | None = None
    """Expected calibration error of sampled answers; None without votes."""
    agreement: float | None = None
    """Mean smoothed IoU of two views' answers to a turn; None if the views were not asked."""
    views: tuple[str, ...] = ()
    """The views asked."""
    votes: int = 0
    """Answers sampled per turn."""
    read_by: str = ""
    """The seed whose start read its replies, and how that was trained; empty for its own start's."""
    seconds: float = 0.0
    """Time that asking took."""


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
    reader: Reader = "own_start"

    @property
    def questions(self) -> Questions:
        """Return what the models were asked."""
        return Questions(self.split, self.limit, self.reader)

    def of(self, variant: str) -> tuple[ModelAnswers, ...]:
        """Return the variant's models, by seed."""
        return tuple(
            sorted((model for model in self.models if model.variant == variant), key=lambda model: model.seed)
        )


def kept_models(kept: Path, questions: Questions) -> dict[tuple[int, str], ModelAnswers]:
    """Return the kept answers to these questions, by seed and variant; none if there is no such file."""
    if not kept.exists() or (answers := load_answers(kept)).questions != questions:
        return {}
    return {(model.seed, model.variant): model for model in answers.models}


def unanswered(
    runs: Sequence[StudyRun], questions: Questions, models: Mapping[tuple[int, str], ModelAnswers]
) -> list[StudyRun]:
    """List the runs whose model was not asked since it was trained, or otherwise than now."""
    left = []
    for run in runs:
        model = models.get((run.seed, run.variant))
        if (
            model is None
            or not run.is_complete
            or (model.trained_as, model.views, model.votes) != (run.trained_as, run.views, run.votes)
            or model.read_by != reader_name(run, reader_of(run, runs, questions.reader))
        ):
            left.append(run)
    return left


def reader_of(run: StudyRun, runs: Sequence[StudyRun], reader: Reader) -> StudyRun | None:
    """Return the start that reads the replies of a run's model; None if none does."""
    starts = {other.seed: other for other in runs if other.variant == START}
    if reader == "none" or run.untrained:
        return None
    if reader == "own_start":
        return None if run.variant == START else starts[run.seed]
    seeds = list(starts)
    return starts[seeds[(seeds.index(run.seed) + 1) % len(seeds)]]


def reader_name(run: StudyRun, reader: StudyRun | None) -> str:
    """Name another seed's start and how it was trained; "" if the model's own start reads, or nobody."""
    if reader is None or reader.seed == run.seed:
        return ""
    return f"seed {reader.seed}, {reader.trained_as if reader.is_complete else 'untrained'}"


def save_answers(path: Path, answers: SplitAnswers) -> None:
    """Write as JSON, whole or not at all."""
    write_json(path, asdict(answers))


def load_answers(path: Path) -> SplitAnswers:
    """Read the file that `save_answers` wrote."""
    return read_stored(path, SplitAnswers, "remove it, and the models are asked again")
