"""Check the raw values of a row and build a Turn from them; every format shares these checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from selfemo.common.errors import nearest
from selfemo.common.printable import quote
from selfemo.corpora.conversation import Turn
from selfemo.corpora.damage import find_damage
from selfemo.corpora.problems import Problem, ProblemSink
from selfemo.corpora.text import clean_text

MAX_LABELS = 3
"""Most gold labels of a turn; an answer names one to three (docs/method.md)."""
MAX_TEXT_CHARS = 10_000
"""Longest utterance, in characters; the longest of the public corpora has 762."""
MAX_SPEAKER_CHARS = 200
"""Longest speaker name, in characters."""
MAX_VOTES = 1_000_000
"""Largest count of annotators who chose a label. Larger counts are refused, since Python computes
slowly with thousands of digits."""


class TurnChecker:
    """Builds the turns of one file and reports every fault in them."""

    def __init__(self, path: Path, labels: Iterable[str], report: ProblemSink) -> None:
        self._path = path
        self._labels = tuple(labels)
        self._report = report
        self._where = ""

    @property
    def example_label(self) -> str:
        """A valid label, for messages that show a correct value."""
        return self._labels[0]

    def turn(
        self,
        line: int,
        speaker: object,
        text: object,
        labels: Iterable[object] = (),
        votes: Mapping[str, object] | None = None,
        where: str = "",
    ) -> Turn | None:
        """Build a checked turn, texts cleaned and labels lower-case; None after a reported problem.

        A turn with votes but no labels gets the labels that the votes imply (`labels_from_votes`).

        Args:
            where: which turn of the line this is, for messages, if a line holds several.
        """
        self._where = f"{where}: " if where else ""
        spoken = self._text(line, "text", text, MAX_TEXT_CHARS)
        name = self._text(line, "speaker", speaker, MAX_SPEAKER_CHARS)
        checked_votes = self._votes(line, votes or {})
        checked_labels = self._label_set(line, labels)
        self._where = ""
        if spoken is None or name is None or checked_votes is None or checked_labels is None:
            return None
        return Turn(name, spoken, checked_labels or labels_from_votes(checked_votes), checked_votes)

    def fault(self, line: int, message: str) -> None:
        """Report a problem of this file."""
        self._report(Problem(self._path, line, self._where + message))

    def oddity(self, line: int, kind: str, message: str) -> None:
        """Report a row of this file that was read and looks wrong."""
        self._report(Problem(self._path, line, self._where + message, odd=kind))

    def _text(self, line: int, field: str, value: object, max_chars: int) -> str | None:
        if not isinstance(value, str):
            self.fault(line, f"{field} is {quote(value)}, expected a text")
            return None
        if len(value) > max_chars:
            self.fault(
                line,
                f"{field} has {len(value)} characters, expected at most {max_chars}: shorten or split it",
            )
            return None
        if any("\ud800" <= char <= "\udfff" for char in value):
            self.fault(line, f"{field} holds half of a surrogate pair: write the character itself, in UTF-8")
            return None
        cleaned = clean_text(value)
        if not cleaned:
            self.fault(line, f"{field} is empty, expected a text: fill it in or remove the turn")
            return None
        if damage := find_damage(cleaned):
            kind, found = damage
            self.oddity(line, kind, f"{field} has {found}: take the file from its source again, in UTF-8")
        return cleaned

    def _label(self, line: int, value: object) -> str | None:
        name = clean_text(value).lower() if isinstance(value, str) else ""
        if name in self._labels:
            return name
        self.fault(
            line,
            f"label {quote(value)} is unknown, expected one of "
            f"{', '.join(self._labels)}{nearest(name, self._labels)}",
        )
        return None

    def _label_set(self, line: int, values: Iterable[object]) -> tuple[str, ...] | None:
        checked = [self._label(line, value) for value in values]
        known = tuple(label for label in checked if label is not None)
        if len(known) < len(checked):
            return None
        if len(set(known)) < len(known):
            self.fault(
                line, f"labels {', '.join(known)} name one twice, expected distinct labels: remove the repeat"
            )
            return None
        if len(known) > MAX_LABELS:
            self.fault(
                line,
                f"has {len(known)} labels, expected at most {MAX_LABELS}: keep the strongest, "
                "or give votes instead",
            )
            return None
        return known

    def _votes(self, line: int, votes: Mapping[str, object]) -> tuple[tuple[str, int], ...] | None:
        counts: Counter[str] = Counter()
        for value, count in votes.items():
            label = self._label(line, value)
            if label is None:
                return None
            if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_VOTES:
                self.fault(
                    line,
                    f"votes for {label} are {quote(count)}, "
                    f"expected a whole number of at least 1 and at most {MAX_VOTES}",
                )
                return None
            counts[label] += count
        return sort_votes(counts)


def sort_votes(counts: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Sort votes as Turn holds them: most first, then by name."""
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def labels_from_votes(votes: tuple[tuple[str, int], ...], primary: str = "") -> tuple[str, ...]:
    """Return the gold set that votes imply: `primary` if given, then every other voted label, at
    most MAX_LABELS."""
    voted = [label for label, _ in votes if label != primary]
    return tuple(([primary] if primary else []) + voted)[:MAX_LABELS]
