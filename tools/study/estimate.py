"""Estimates the CPU minutes that a study has left: from the runs that have ended, else from its own guess."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.study.answers import Questions, kept_models, unanswered
from tools.study.runs import StudyRun, answers_file
from tools.study.schema import START, StudyPlan


@dataclass(frozen=True)
class Left:
    """Work of one kind that is left."""

    what: str
    left: int
    of: int
    """Number of them in the study."""
    each: float
    """CPU minutes."""
    ended: int
    """Number of ended ones that `each` is the mean of; 0: it is the study's guess."""

    @property
    def minutes(self) -> float:
        """CPU minutes left."""
        return self.left * self.each


def training_left(plan: StudyPlan, runs: Sequence[StudyRun]) -> Iterator[Left]:
    """Yield the runs of each variant that have not ended. One that was cut short counts whole."""
    guesses = {START: plan.guess.start} | {v.name: v.minutes or plan.guess.run for v in plan.variants}
    for name in dict.fromkeys(run.variant for run in runs):
        of_name = [run for run in runs if run.variant == name]
        ended = [run.minutes for run in of_name if run.is_complete]
        each = statistics.mean(ended) if ended else guesses[name]
        yield Left(name, len(of_name) - len(ended), len(of_name), each, len(ended))


def asking_left(plan: StudyPlan, runs: Sequence[StudyRun], output: Path, split: str) -> Left:
    """Count the models that were not asked about a split yet."""
    questions, left, seconds = Questions.of(plan, split), 0, []
    for share, _ in plan.parts:
        of_share = [run for run in runs if run.share == share]
        models = kept_models(answers_file(output, share, split), questions)
        left += len(unanswered(of_share, questions, models))
        seconds += [model.seconds for model in models.values() if model.seconds]
    each = statistics.mean(seconds) / 60 if seconds else plan.guess.ask
    return Left(f"answers on {split}", left, len(runs), each, len(seconds))


def render_left(rows: Sequence[Left]) -> str:
    """Return a line per kind and the sum."""
    lines = []
    for row in rows:
        source = f"mean of {row.ended}" if row.ended else "guess"
        each = f"{row.each:.1f} each ({source})"
        lines.append(f"{row.what:24} {row.left:4} of {row.of:4} left, {each:24} {row.minutes:7.0f}")
    total = sum(row.minutes for row in rows)
    return "\n".join([*lines, f"left: {total:.0f} CPU minutes ({total / 60:.1f} hours of one core)"])
