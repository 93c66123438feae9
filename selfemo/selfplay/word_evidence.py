"""Reads emotions off the words of a line alone, by a regression on the labelled turns' words.

The views of one model share most of its errors, so their vote knows little more than each of them. Words
err elsewhere: a teacher with both is right more often (docs/study/log.md). The paper has no such reader;
`selfplay.teacher_words` is its weight, and 0 leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from sys import float_info

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from selfemo.common.errors import UserError
from selfemo.corpora.conversation import Conversation
from selfemo.corpora.words import words_and_marks

INVERSE_PENALTY = 10.0
"""scikit-learn's C: the loss is the squared coefficients' half sum, and this many times the labelled turns'
cross-entropy. The best of 1, 3, 10 and 30 on MELD (docs/study/log.md)."""

TOLERANCE = 1e-6
"""The largest component of the loss's gradient at which the fit ends."""

STEPS = 1000
"""Of L-BFGS at most."""

TINY = float_info.min
"""Stands for a share of 0, which has no logarithm."""


@dataclass(frozen=True)
class WordEvidence:
    """P(label | words of a line), from the labelled turns of a training split."""

    labels: tuple[str, ...]
    """The labels that occur, in the order of the closed set."""
    _vectorizer: TfidfVectorizer
    _regression: LogisticRegression

    @classmethod
    def fit(cls, conversations: Sequence[Conversation], labels: Sequence[str]) -> WordEvidence:
        """Fit a logistic regression on words, marks and their pairs.

        A line is a vector of length 1: of each of them 1 + log(count), times its inverse document frequency.
        A turn of several labels counts for each of them in equal parts.

        Args:
            conversations: the training split; turns without labels are passed over.
            labels: the closed set.

        Raises:
            UserError: no labelled turn has a word, or all have the same label.
        """
        turns = [turn for conversation in conversations for turn in conversation.turns if turn.labels]
        seen = [
            (row, labels.index(label), 1 / len(turn.labels))
            for row, turn in enumerate(turns)
            for label in turn.labels
        ]
        if not any(_units(turn.text) for turn in turns):
            raise UserError(
                "selfplay.teacher_words reads the words of labelled turns, and the training split has none; "
                "label more dialogues (corpus.labelled_share), or set selfplay.teacher_words=0"
            )
        if len(named := {label for _, label, _ in seen}) == 1:
            raise UserError(
                "selfplay.teacher_words tells labels apart by their words, and every labelled turn of the "
                f"training split is {labels[named.pop()]}; label more dialogues (corpus.labelled_share), or "
                "set selfplay.teacher_words=0"
            )
        vectorizer = TfidfVectorizer(analyzer=_units, sublinear_tf=True)
        vectors = vectorizer.fit_transform([turn.text for turn in turns])
        rows, classes, parts = (list(column) for column in zip(*seen, strict=True))
        regression = LogisticRegression(C=INVERSE_PENALTY, tol=TOLERANCE, max_iter=STEPS)
        regression.fit(vectors[rows], classes, parts)
        return cls(tuple(labels[index] for index in regression.classes_), vectorizer, regression)

    def log_shares(self, text: str) -> dict[str, float]:
        """Compute the natural log of P(label | words of `text`) for every label that occurs."""
        (row,) = self._regression.predict_log_proba(self._vectorizer.transform([text]))
        return dict(zip(self.labels, row.tolist(), strict=True))


def weigh_in(
    shares: Sequence[tuple[str, float]], evidence: Mapping[str, float], weight: float
) -> tuple[tuple[str, float], ...]:
    """Multiply a vote's shares by exp(weight * evidence), and normalise them to 1.

    A label that no labelled turn has is weighed like the least likely of the others: its words were never
    seen.

    Args:
        shares: (label, share) of each label.
        evidence: from `WordEvidence.log_shares`.
        weight: 1 takes the words for as good a reader as the views together.

    Returns:
        (label, share), the largest first; of equal ones, in the order of `shares`.
    """
    least = min(evidence.values())
    scores = [log(max(share, TINY)) + weight * evidence.get(label, least) for label, share in shares]
    largest = max(scores)
    parts = [exp(score - largest) for score in scores]
    total = sum(parts)
    found = [(label, part / total) for (label, _), part in zip(shares, parts, strict=True)]
    return tuple(sorted(found, key=lambda pair: -pair[1]))


def _units(text: str) -> list[str]:
    units = words_and_marks(text)
    return [*units, *(f"{a} {b}" for a, b in pairwise(units))]
