"""Names a consensus on a turn of the corpus by a few numbers, which every rank can look up.

The ranks of a run hold the same corpus, so a reading travels as the place of its turn and the labels, and not
as the dialogue.
"""

from __future__ import annotations

from collections.abc import Sequence

from selfemo.corpora.conversation import Corpus
from selfemo.corpora.overlap import TRAIN
from selfemo.emotions.answer import MAX_LABELS
from selfemo.flywheel.lessons import Lesson
from selfemo.selfplay.openings import Place, place_of
from selfemo.selfplay.teacher import SHARE_DIGITS, by_share

NO_LABEL = -1


class CorpusTurns:
    """The turns of the training dialogues, with the labels that the run may see."""

    def __init__(self, corpus: Corpus) -> None:
        """Number the dialogues and the labels."""
        revealed = {c.key: c for c in corpus.revealed}
        self._dialogues = [revealed.get(c.key, c) for c in corpus.split(TRAIN)]
        self._numbers = {c.key: number for number, c in enumerate(self._dialogues)}
        self._labels = corpus.labels
        longest = max((len(turn.labels) for c in corpus.revealed for turn in c.turns), default=0)
        self._width = max(MAX_LABELS, longest)

    @property
    def columns(self) -> int:
        """Number of integers of a row."""
        return 3 + self._width + len(self._labels)

    def row(self, place: Place, lesson: Lesson) -> tuple[int, ...]:
        """Return the number of the dialogue, the first and the last turn that is shown, the labels, and
        every label's share in millionths.

        Raises:
            ValueError: the corpus holds no such turns; it is a bug.
        """
        number, size = self._numbers[place[0]], len(lesson.turns)
        turns = self._dialogues[number].turns
        for first in range(len(turns) + 1 - size):
            if turns[first : first + size] == lesson.turns:
                labels = [self._labels.index(label) for label in lesson.labels]
                unused = [NO_LABEL] * (self._width - len(labels))
                shares = dict(lesson.shares)
                millionths = [round(shares.get(label, 0) * 10**SHARE_DIGITS) for label in self._labels]
                return number, first, first + size - 1, *labels, *unused, *millionths
        raise ValueError(f"{place[0]}: holds no turns {place[1]}")

    def lesson(self, row: Sequence[int]) -> tuple[Place, Lesson]:
        """Return the turn and the lesson of a `row`."""
        number, first, last = row[:3]
        labels, millionths = row[3 : 3 + self._width], row[3 + self._width :]
        dialogue = self._dialogues[number]
        turns = dialogue.turns[first : last + 1]
        named = tuple(self._labels[label] for label in labels if label != NO_LABEL)
        given = [(label, n / 10**SHARE_DIGITS) for label, n in zip(self._labels, millionths) if n]
        shares = tuple(sorted(given, key=by_share))
        return place_of(dialogue.key, turns), Lesson(
            "recognizer", turns, turns[-1].speaker, named, shares=shares
        )
