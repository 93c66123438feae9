"""Reads emotions off the words of a line alone, by counts of the labelled turns' words (naive Bayes).

The views of one model share most of its errors, so their vote knows little more than each of them. Counts
know less than the model and err elsewhere: a teacher with both is right more often (docs/study/log.md). The
paper has no such reader; `selfplay.teacher_words` is its weight, and 0 leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from sys import float_info

from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from selfemo.common.errors import UserError
from selfemo.corpora.conversation import Conversation
from selfemo.corpora.words import words_and_marks

PSEUDO_COUNT = 0.3
"""Added to the count of every word under every label. Smaller than Laplace's 1, since pairs of words are
counted as well and most occur once."""

TINY = float_info.min
"""Stands for a share of 0, which has no logarithm."""


@dataclass(frozen=True)
class WordEvidence:
    """P(label | words of a line), from the labelled turns of a training split."""

    labels: tuple[str, ...]
    """The labels that occur, in the order of the closed set."""
    _vectorizer: CountVectorizer
    _bayes: MultinomialNB

    @classmethod
    def count(cls, conversations: Sequence[Conversation], labels: Sequence[str]) -> WordEvidence:
        """Count words, marks and their pairs, once per turn in which they occur.

        A turn of several labels counts for each of them in equal parts.

        Args:
            conversations: the training split; turns without labels are passed over.
            labels: the closed set.

        Raises:
            UserError: no labelled turn has a word.
        """
        seen = [
            (turn.text, label, 1 / len(turn.labels))
            for conversation in conversations
            for turn in conversation.turns
            for label in turn.labels
        ]
        vectorizer = CountVectorizer(analyzer=_units, binary=True)
        if not any(_units(text) for text, _, _ in seen):
            raise UserError(
                "selfplay.teacher_words counts the words of labelled turns, and the training split has none; "
                "label more dialogues (corpus.labelled_share), or set selfplay.teacher_words=0"
            )
        counts = vectorizer.fit_transform([text for text, _, _ in seen])
        named = [labels.index(label) for _, label, _ in seen]
        bayes = MultinomialNB(alpha=PSEUDO_COUNT).fit(counts, named, [part for _, _, part in seen])
        return cls(tuple(labels[index] for index in bayes.classes_), vectorizer, bayes)

    def log_shares(self, text: str) -> dict[str, float]:
        """Compute the natural log of P(label | words of `text`) for every label that occurs."""
        (row,) = self._bayes.predict_log_proba(self._vectorizer.transform([text]))
        return dict(zip(self.labels, row.tolist(), strict=True))


def weigh_in(
    shares: Sequence[tuple[str, float]], evidence: Mapping[str, float], weight: float
) -> tuple[tuple[str, float], ...]:
    """Multiply a vote's shares by exp(weight * evidence), and normalise them to 1.

    A label that no labelled turn has is weighed like the least likely of the others: its words were never
    counted.

    Args:
        shares: (label, share) of each label.
        evidence: from `WordEvidence.log_shares`.
        weight: 1 would be Bayes' rule if words told of a label independently of each other and of the model.
            They do not.

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
