"""Notice rows of a dialogue that are out of order: a shuffled or sorted file reads as other dialogues."""

from __future__ import annotations

from selfemo.corpora.turns import TurnChecker

OUT_OF_ORDER = "a row out of order"
MAX_ID_DIGITS = 18
"""Digits of an utterance's number that are compared; Python computes slowly with thousands."""


class RowOrder:
    """Watches the rows of one file. Turns keep the order of the rows, so an id that goes back is told."""

    def __init__(self, checker: TurnChecker) -> None:
        self._checker = checker
        self._last: dict[str, tuple[int, int]] = {}
        self._open: tuple[str, int] | None = None

    def see(self, line: int, dialogue: str, utterance: int) -> None:
        """Take the next row: its dialogue, and its number in the dialogue.

        Gaps are sound, numbers that go back are not; nor is a dialogue that goes on after another began.
        """
        before = self._last.get(dialogue)
        remedy = "rows are read in their order: sort the file by dialogue and utterance, or take it again"
        if before is not None and utterance < before[0]:
            told = f"utterance {utterance} of dialogue {dialogue} stands after {before[0]} (line {before[1]})"
            self._checker.oddity(line, OUT_OF_ORDER, f"{told}: {remedy}")
        elif before is not None and self._open is not None and self._open[0] != dialogue:
            told = f"dialogue {dialogue} goes on after line {self._open[1]} began dialogue {self._open[0]}"
            self._checker.oddity(line, OUT_OF_ORDER, f"{told}: {remedy}")
        if self._open is None or self._open[0] != dialogue:
            self._open = (dialogue, line)
        self._last[dialogue] = (utterance, line)
