"""Computes the figures of a classification: accuracy, averages of F1, figures per label, confusions,
collapse.

scikit-learn computes them on primary labels. A completion outside the grammar is a prediction of
NO_ANSWER, which is no label: it is wrong, it counts among the n turns, and it lowers its gold label's
recall. Macro F1 averages over the labels that occur in the gold annotation (scikit-learn's average over
a given label list), so a stray prediction of an absent label does not add a class of zeros.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from selfemo.emotions.labels import NEUTRAL
from selfemo.evaluation.turns import EvaluationTurn

NO_ANSWER = "(no answer)"
"""Stands for a format failure among predictions. Brackets keep it apart from any label."""


@dataclass(frozen=True)
class LabelFigures:
    """One label's row in the per-label table."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int
    """Turns whose gold primary label this is."""
    predicted: int
    """Turns it was predicted for."""


@dataclass(frozen=True)
class Classification:
    """Figures of one set of predictions; shares and scores in [0, 1]."""

    n: int
    accuracy: float
    weighted_f1: float
    macro_f1: float
    format_failure_rate: float
    label_entropy: float
    """Entropy of the predicted primary labels, in nats; 0 if every prediction is the same label."""
    neutral_share: float
    """Share of neutral among predicted labels (answers in the grammar)."""
    per_label: tuple[LabelFigures, ...]
    """In label-set order."""
    confusion: tuple[tuple[int, ...], ...]
    """Rows: gold in label-set order; columns: predicted in the same order, and NO_ANSWER last."""


def classify(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Classification:
    """Compute the figures of `predicted` against `gold`.

    Args:
        gold: primary gold labels, n of them.
        predicted: n labels, or NO_ANSWER.
        labels: the closed label set.

    Raises:
        ValueError: no turn, unequal lengths, or a label outside the set.
    """
    _check(gold, predicted, labels)
    gold, predicted, columns = list(gold), list(predicted), [*labels, NO_ANSWER]
    present = [label for label in labels if label in set(gold)]
    precision, recall, f1, support = precision_recall_fscore_support(
        gold, predicted, labels=list(labels), zero_division=0
    )
    answers = Counter(label for label in predicted if label != NO_ANSWER)
    return Classification(
        n=len(gold),
        accuracy=float(accuracy_score(gold, predicted)),
        weighted_f1=float(f1_score(gold, predicted, labels=present, average="weighted", zero_division=0)),
        macro_f1=float(f1_score(gold, predicted, labels=present, average="macro", zero_division=0)),
        format_failure_rate=predicted.count(NO_ANSWER) / len(predicted),
        label_entropy=entropy(list(answers.values())),
        neutral_share=answers[NEUTRAL] / answers.total() if answers else 0.0,
        per_label=tuple(
            LabelFigures(
                label, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]), answers[label]
            )
            for i, label in enumerate(labels)
        ),
        confusion=tuple(
            tuple(int(count) for count in row)
            for row in confusion_matrix(gold, predicted, labels=columns)[: len(labels)]
        ),
    )


@dataclass(frozen=True)
class MajorityBaseline:
    """Score of answering every turn with the most frequent gold label."""

    label: str
    n: int
    accuracy: float
    weighted_f1: float
    macro_f1: float


def majority_baseline(turns: Sequence[EvaluationTurn]) -> MajorityBaseline:
    """Compute the baseline of these turns; among equally frequent labels, the alphabetically first.

    Raises:
        ValueError: no turn.
    """
    gold = [turn.gold[0] for turn in turns]
    counts = Counter(gold)
    label = min(counts, key=lambda name: (-counts[name], name), default="")
    figures = classify(gold, [label] * len(gold), sorted(counts))
    return MajorityBaseline(label, figures.n, figures.accuracy, figures.weighted_f1, figures.macro_f1)


def entropy(counts: Sequence[int]) -> float:
    """Compute the entropy of a distribution given by counts, in nats; 0 for no counts."""
    total = sum(counts)
    return -sum(count / total * math.log(count / total) for count in counts if count) + 0.0


def _check(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> None:
    if not gold:
        raise ValueError("gold is empty: there is nothing to evaluate")
    if len(gold) != len(predicted):
        raise ValueError(f"gold has {len(gold)} entries, predicted has {len(predicted)}")
    for name, values, valid in (("gold", gold, set(labels)), ("predicted", predicted, {*labels, NO_ANSWER})):
        stray = next((i for i, value in enumerate(values) if value not in valid), None)
        if stray is not None:
            raise ValueError(f"{name}[{stray}] is {values[stray]!r}, which is not in the label set")
