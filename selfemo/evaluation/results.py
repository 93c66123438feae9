"""Writes an evaluation as JSON: everything the terminal shows, and every turn's answer.

With the answers, later comparisons need no model.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from selfemo.common.files import new_file
from selfemo.emotions.answer import Answer, Reading
from selfemo.emotions.labels import NEUTRAL
from selfemo.evaluation.evaluate import ModelReport, Task
from selfemo.evaluation.expression import ExpressionReport
from selfemo.evaluation.intervals import RESAMPLES, Interval
from selfemo.evaluation.metrics import NO_ANSWER, MajorityBaseline, entropy, majority_baseline
from selfemo.evaluation.recognition import CONTEXT, RecognitionReport
from selfemo.evaluation.voting import VotingReport

SCHEMA = 1
CONTEXT_MEANING = "causal: a turn is read with earlier turns only, never a later one"


@dataclass(frozen=True)
class Evaluation:
    """One or two models on the turns of one split."""

    corpus: str
    corpus_path: str
    split: str
    limit: int
    """First turns of the split that were evaluated; 0 for all."""
    task: Task
    models: tuple[ModelReport, ...]
    """The model, and the one it is compared with if there is one."""
    differences: tuple[Interval, ...]
    """Figures of the first model minus those of the second; empty for one model."""

    @property
    def majority(self) -> MajorityBaseline:
        """Score of always answering the split's most frequent label."""
        return majority_baseline(self.task.turns)

    @property
    def gold_entropy(self) -> float:
        """Entropy of the gold primary labels, in nats."""
        return entropy([self.task.gold.count(label) for label in self.task.labels])

    @property
    def gold_neutral_share(self) -> float:
        """Share of neutral among the gold primary labels."""
        return self.task.gold.count(NEUTRAL) / len(self.task.gold)


def never_predicted(report: ModelReport) -> tuple[str, ...]:
    """List labels that occur in the gold annotation and that the model never gave first.

    They are the plainest sign of collapse.
    """
    return tuple(
        row.label for row in report.recognition.classification.per_label if row.support and not row.predicted
    )


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Convert to plain values, in a readable order."""
    task = evaluation.task
    return {
        "schema": SCHEMA,
        "context": CONTEXT,
        "context_meaning": CONTEXT_MEANING,
        "corpus": evaluation.corpus,
        "corpus_path": evaluation.corpus_path,
        "split": evaluation.split,
        "limit": evaluation.limit,
        "turns": len(task.turns),
        "dialogues": len(set(task.dialogues)),
        "labels": list(task.labels),
        "scoring": task.scoring,
        "siou": {
            "smoothing": task.score.smoothing,
            "affinity": evaluation.models[0].model.config.reward.affinity,
        },
        "seed": task.seed,
        "resamples": RESAMPLES,
        "gold": {"label_entropy": evaluation.gold_entropy, "neutral_share": evaluation.gold_neutral_share},
        "majority": asdict(evaluation.majority),
        "models": [_model(report) for report in evaluation.models],
        "differences": [{**asdict(d), "excludes_zero": d.excludes_zero} for d in evaluation.differences],
        "answers": _answers(evaluation),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write under a temporary name, then rename; UserError if that fails."""
    with new_file(path, "--json") as temporary:
        temporary.write_text(
            json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )


def _model(report: ModelReport) -> dict[str, Any]:
    figures = report.recognition.classification
    return {
        "model": str(report.model.path),
        "settings_from": report.model.settings_from,
        "settings": report.model.prompt_settings(),
        "accuracy": figures.accuracy,
        "weighted_f1": figures.weighted_f1,
        "macro_f1": figures.macro_f1,
        "siou": report.recognition.siou,
        "exact_match": report.recognition.exact_match,
        "intervals": [asdict(interval) for interval in report.intervals],
        "collapse": {
            "format_failure_rate": figures.format_failure_rate,
            "label_entropy": figures.label_entropy,
            "neutral_share": figures.neutral_share,
            "never_predicted": list(never_predicted(report)),
        },
        "per_label": [asdict(row) for row in figures.per_label],
        "confusion": {
            "gold": [row.label for row in figures.per_label],
            "predicted": [*(row.label for row in figures.per_label), NO_ANSWER],
            "counts": [list(row) for row in figures.confusion],
        },
        "calibration": {"confidence": report.confidence, **asdict(report.calibration)}
        if report.calibration
        else None,
        "voting": _voting(report.voting) if report.voting else None,
        "expression": _expression(report.expression, str(report.read_by.path))
        if report.expression and report.read_by
        else None,
    }


def _voting(report: VotingReport) -> dict[str, Any]:
    """Return the vote's figures, its differences to the plain reading, and each view's own figures."""
    return {
        "views": list(report.views),
        **_figures(report.recognition),
        "intervals": [asdict(interval) for interval in report.intervals],
        "differences": [{**asdict(d), "excludes_zero": d.excludes_zero} for d in report.differences],
        "alone": [
            {"view": view, **_figures(alone)} for view, alone in zip(report.views, report.alone, strict=True)
        ],
    }


def _figures(report: RecognitionReport) -> dict[str, float]:
    return {
        "accuracy": report.accuracy,
        "weighted_f1": report.weighted_f1,
        "macro_f1": report.macro_f1,
        "siou": report.siou,
        "exact_match": report.exact_match,
        "neutral_share": report.classification.neutral_share,
        "format_failure_rate": report.format_failure_rate,
    }


def _expression(report: ExpressionReport, recognizer: str) -> dict[str, Any]:
    return {
        "recognizer": recognizer,
        "n": report.n,
        "siou": report.siou,
        "primary_hit_rate": report.primary_hit_rate,
        "gate_failures": dict(report.gate_failures),
        "per_target": [{"label": label, "n": n, "siou": siou} for label, n, siou in report.per_target],
        "distinct_replies": report.distinct_replies,
        "distinct_bigrams": report.distinct_bigrams,
        "replies": [
            {
                "target": list(reply.target),
                "text": reply.text,
                "failed_gates": list(reply.gates),
                "read_as": None if reply.reading is None else _labels(reply.reading),
                "score": reply.score,
            }
            for reply in report.replies
        ],
    }


def _answers(evaluation: Evaluation) -> list[dict[str, Any]]:
    """List, per turn, its place, the gold set, each model's set and its views' vote.

    A set is null for a format failure.
    """
    columns = [report.recognition.readings for report in evaluation.models]
    voted = [report.voting.recognition.readings for report in evaluation.models if report.voting]
    return [
        {
            "dialogue": turn.dialogue,
            "turn": turn.index,
            "gold": list(turn.gold),
            "predicted": [_labels(column[i]) for column in columns],
            **({"voted": [_labels(column[i]) for column in voted]} if voted else {}),
        }
        for i, turn in enumerate(evaluation.task.turns)
    ]


def _labels(reading: Reading) -> list[str] | None:
    return list(reading.labels) if isinstance(reading, Answer) else None
