"""Measure how alike two labels are: not at all (identity), or by their distance on the
valence-arousal circumplex.

An affinity matrix is fixed before training, never learnt. Off the diagonal no entry exceeds 1/2.
With this bound the smoothed IoU is well behaved under any matrix: adding a gold label y to a
prediction raises the best matching's weight by at least 1 - max affinity >= 1/2 (match y with
itself, drop y's old partner), and a gain of 1/2 is enough for the score never to fall
(docs/method.md has the two lines of algebra). A near miss is thus worth at most half a hit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from selfemo.common.errors import UserError, nearest

MAX_AFFINITY = 0.5

RUSSELL_ANGLE_DEG = {
    "happy": 7.8,
    "delighted": 24.9,
    "excited": 48.6,
    "astonished": 69.8,
    "angry": 99.0,
    "afraid": 116.0,
    "annoyed": 123.0,
    "distressed": 138.0,
    "frustrated": 141.0,
    "sad": 207.5,
    "bored": 242.0,
    "tired": 267.7,
    "calm": 316.2,
    "content": 323.0,
    "serene": 328.6,
    "glad": 349.0,
    "pleased": 353.2,
}
"""Angle of an affect word on the circumplex, 0 = pleasure, 90 = arousal. Source: J. A. Russell, "A
circumplex model of affect", J. Pers. Soc. Psychol. 39 (1980), direct circular scaling."""

DISGUST_DEG = 130.0
"""Not among Russell's words. This project places it between annoyed and distressed."""
POWERFUL_DEG = 36.0
"""Not among Russell's words. EmoryNLP's "powerful" covers proud, confident and hopeful; this
project places it between delighted and excited."""

_WORD_OF_LABEL = {
    "anger": "angry",
    "mad": "angry",
    "annoyance": "annoyed",
    "boredom": "bored",
    "calmness": "calm",
    "contentment": "content",
    "distress": "distressed",
    "excitement": "excited",
    "fear": "afraid",
    "scared": "afraid",
    "frustration": "frustrated",
    "happiness": "happy",
    "joy": "happy",
    "joyful": "happy",
    "peaceful": "serene",
    "sadness": "sad",
    "surprise": "astonished",
    "surprised": "astonished",
}
_PLACED_DEG = {"disgust": DISGUST_DEG, "disgusted": DISGUST_DEG, "powerful": POWERFUL_DEG}


@dataclass(frozen=True)
class Affinity:
    """A symmetric matrix over a closed label set: 1 on the diagonal, in [0, 1/2] off it."""

    labels: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    """Rows and columns in the order of `labels`."""

    def __post_init__(self) -> None:
        """Check the matrix; ValueError names the entry that breaks a rule."""
        size = len(self.labels)
        if len(self.matrix) != size or any(len(row) != size for row in self.matrix):
            raise ValueError(f"matrix is not {size} x {size}, the number of labels")
        for i in range(size):
            for j in range(size):
                value = self.matrix[i][j]
                if value != self.matrix[j][i]:
                    raise ValueError(f"matrix[{i}][{j}] differs from matrix[{j}][{i}]: affinity is symmetric")
                if i == j and value != 1.0:
                    raise ValueError(f"matrix[{i}][{i}] is {value}, expected 1")
                if i != j and not 0.0 <= value <= MAX_AFFINITY:
                    raise ValueError(f"matrix[{i}][{j}] is {value}, expected a value in [0, {MAX_AFFINITY}]")


def identity_affinity(labels: Sequence[str]) -> Affinity:
    """Build the identity matrix, the smoothed IoU's default: two labels are equal or have nothing
    in common."""
    size = len(labels)
    return Affinity(tuple(labels), tuple(tuple(float(i == j) for j in range(size)) for i in range(size)))


def circumplex_affinity(labels: Sequence[str]) -> Affinity:
    """Build a matrix that falls linearly with the distance of two labels on the unit circle.

    Two different labels get at most 1/2, and 0 from distance 1 (60 degrees) on. Neutral lies at the
    centre, at distance 1 from every emotion, so it is like none of them.

    Raises:
        UserError: a label has no place on the circumplex.
    """
    points = [_place(label) for label in labels]

    def affinity(i: int, j: int) -> float:
        return 1.0 if i == j else MAX_AFFINITY * max(0.0, 1.0 - round(math.dist(points[i], points[j]), 9))

    size = len(labels)
    return Affinity(
        tuple(labels), tuple(tuple(affinity(min(i, j), max(i, j)) for j in range(size)) for i in range(size))
    )


def build_affinity(name: str, labels: Sequence[str]) -> Affinity:
    """Build the matrix that `reward.affinity` names: "identity" or "circumplex".

    Raises:
        ValueError: another name.
        UserError: a label has no place on the circumplex.
    """
    if name == "identity":
        return identity_affinity(labels)
    if name == "circumplex":
        return circumplex_affinity(labels)
    raise ValueError(f"affinity {name!r}: expected 'identity' or 'circumplex'")


def _place(label: str) -> tuple[float, float]:
    """Return (valence, arousal) of a label: on the unit circle or, for neutral, at its centre."""
    if label == "neutral":
        return (0.0, 0.0)
    angle_deg = _PLACED_DEG.get(label, RUSSELL_ANGLE_DEG.get(_WORD_OF_LABEL.get(label, label)))
    if angle_deg is None:
        known = sorted({*_WORD_OF_LABEL, *_PLACED_DEG, *RUSSELL_ANGLE_DEG, "neutral"})
        raise UserError(
            f"reward.affinity=circumplex: label {label!r} has no place on it{nearest(label, known)}; "
            "use reward.affinity=identity"
        )
    return (math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg)))
