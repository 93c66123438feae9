"""Compute the smoothed IoU: one number for how well two emotion sets agree. It is graded; an exact
match is all or nothing.

    sIoU(P, Y) = (m + e) / (|P| + |Y| - m + e)

Here m is the weight of the best matching between P and Y under the affinity matrix. With the
identity matrix and e = 0 this is the intersection over union. With e in [0, 0.1], a wrong answer in
the grammar scores a little more than a format failure (which is exactly 0), and a longer wrong
answer less than a short one. The score is symmetric, lies in [0, 1], and is 1 only for equal sets.
It does not rise when a label without affinity to the reference is added, and does not fall when a
reference label is added. The formula of SELF-EMO (arXiv 2604.18003) is not published; this is the
project's reading (docs/method.md).

An iteration computes some 10^5 scores over a few hundred distinct pairs, so an instance caches its
results, by the labels as they are written: making a set of them costs more than a second entry.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations
from typing import cast

from selfemo.emotions.affinity import Affinity
from selfemo.emotions.answer import Answer, Reading

MAX_SMOOTHING = 0.1
_CACHE_LIMIT = 1 << 16


class SmoothedIoU:
    """Computes sIoU under one affinity matrix and one e; call an instance with two label sets."""

    def __init__(self, affinity: Affinity, smoothing: float) -> None:
        """Set the matrix and e.

        Args:
            affinity: matrix over the closed label set.
            smoothing: e, in [0, 0.1], else ValueError.
        """
        if not 0.0 <= smoothing <= MAX_SMOOTHING:
            raise ValueError(f"smoothing is {smoothing}, expected a value in [0, {MAX_SMOOTHING}]")
        self.affinity = affinity
        self.smoothing = smoothing
        self._index = {label: i for i, label in enumerate(affinity.labels)}
        self._known: dict[tuple[tuple[str, ...], tuple[str, ...]], float] = {}

    def __call__(self, predicted: Collection[str], reference: Collection[str]) -> float:
        """Compute the smoothed IoU of two non-empty sets of labels, in [0, 1].

        Raises:
            ValueError: an empty set, or a label outside the closed set.
        """
        key = (tuple(predicted), tuple(reference))
        score = self._known.get(key)
        if score is None:
            score = self._compute(frozenset(predicted), frozenset(reference))
            if len(self._known) >= _CACHE_LIMIT:
                self._known.clear()
            self._known[key] = score
        return score

    def of_reading(self, reading: Reading, reference: Collection[str]) -> float:
        """Compute the smoothed IoU of an answer with `reference`; exactly 0 for a format failure."""
        return self(reading.labels, reference) if isinstance(reading, Answer) else 0.0

    def mean_pairwise(self, readings: Sequence[Reading], views: Sequence[str] = ()) -> float:
        """Average the score over all pairs of a group's answers: the group's consistency.

        A pair with a format failure counts 0. A single answer gives 1; a single format failure, or
        an empty group, gives 0.

        Args:
            views: the view of each answer; if they are several, only pairs of different views count.
        """
        if len(readings) < 2:
            return float(bool(readings) and isinstance(readings[0], Answer))
        scores = self._of_pairs(list(combinations(_label_sets(readings), 2)))
        if len(set(views)) > 1:
            scores = [s for s, (a, b) in zip(scores, combinations(views, 2), strict=True) if a != b]
        return sum(scores) / len(scores)

    def rows(self, readings: Sequence[Reading]) -> list[list[float]]:
        """Compute the score of each reading with each, row by row; 0 for a format failure on either side."""
        sets = _label_sets(readings)
        rows = {mine: self._of_pairs([(mine, other) for other in sets]) for mine in dict.fromkeys(sets)}
        return [rows[mine] for mine in sets]

    def _of_pairs(self, pairs: Sequence[tuple[tuple[str, ...], tuple[str, ...]]]) -> list[float]:
        """Compute many scores; 0 where a set is empty. Nearly all are known: no call is made for those."""
        found = list(map(self._known.get, pairs))
        if None not in found:
            return cast(list[float], found)
        return [self(a, b) if a and b else 0.0 for a, b in pairs]

    def _compute(self, predicted: frozenset[str], reference: frozenset[str]) -> float:
        for name, labels in (("predicted", predicted), ("reference", reference)):
            if not labels:
                raise ValueError(f"{name} is empty: a smoothed IoU needs two non-empty label sets")
            unknown = sorted(labels - self._index.keys())
            if unknown:
                raise ValueError(
                    f"{name} holds {unknown[0]!r}, which is not in the label set {list(self._index)}"
                )
        rows = [self._index[label] for label in sorted(predicted)]
        columns = [self._index[label] for label in sorted(reference)]
        # A fixed order of the two sets makes sums of both directions round alike: symmetric to the bit.
        if (len(rows), rows) < (len(columns), columns):
            rows, columns = columns, rows
        matched = best_matching(self.affinity.matrix, rows, columns)
        return (matched + self.smoothing) / (len(rows) + len(columns) - matched + self.smoothing)


def _label_sets(readings: Sequence[Reading]) -> list[tuple[str, ...]]:
    """Return the labels of each reading; of a format failure none."""
    return [reading.labels if isinstance(reading, Answer) else () for reading in readings]


def best_matching(matrix: Sequence[Sequence[float]], rows: Sequence[int], columns: Sequence[int]) -> float:
    """Compute the largest total weight of a matching between `rows` and `columns` of a non-negative
    matrix, exactly.

    A dynamic programme over subsets of `columns` takes rows x 2^columns steps, so `columns` should
    be the shorter side (<= 4 here).
    """
    best = {0: 0.0}
    for row in rows:
        grown = dict(best)
        for used, weight in best.items():
            for position, column in enumerate(columns):
                bit = 1 << position
                if not used & bit:
                    grown[used | bit] = max(grown.get(used | bit, 0.0), weight + matrix[row][column])
        best = grown
    return max(best.values())
