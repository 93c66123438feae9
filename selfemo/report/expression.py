"""Compares, emotion by emotion, the replies that self-play asked for with how well the emotion is read.

Replies are written for emotions that are rare in the corpus, so that the recognizer sees more of them. This
table shows whether their F1 rose.
"""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from dataclasses import dataclass

from selfemo.flywheel.joined import JoinedStores
from selfemo.flywheel.rule import READ_BACK
from selfemo.flywheel.store import Total
from selfemo.records.directory import flywheel_files
from selfemo.records.reading import RunRecords


@dataclass(frozen=True)
class EmotionRow:
    """One emotion's replies, and F1 of reading it before and after self-play."""

    label: str
    asked: int
    """Responder groups whose target's first emotion this is."""
    kept: int
    """Those of them whose best reply the flywheel kept as `expression`."""
    read_back: int
    """Those of them that a later round's teacher read as they were meant."""
    before: float | None
    """F1 of the recognizer after SFT; None if that was not evaluated."""
    after: float | None
    """F1 of the recognizer at the end of the run; None before that."""

    @property
    def change(self) -> float | None:
        """Change of F1 from the SFT model to the final one."""
        return None if self.before is None or self.after is None else self.after - self.before


def emotion_rows(records: RunRecords) -> list[EmotionRow]:
    """Return a row per emotion, most asked first; [] if nothing has been asked.

    Raises:
        UserError: the flywheel's file is damaged.
    """
    asked, kept, read_back = _replies(_totals(records))
    if not asked:
        return []
    before, after = (_f1(records, stage) for stage in ("sft", "final"))
    return [
        EmotionRow(label, asked[label], kept[label], read_back[label], before.get(label), after.get(label))
        for label in sorted({*asked, *before, *after}, key=lambda label: (-asked[label], label))
    ]


def _totals(records: RunRecords) -> list[Total]:
    files = flywheel_files(records.root)
    if not files:
        return []
    with closing(JoinedStores(files)) as store:
        return store.totals()


def _replies(totals: list[Total]) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Count responder groups by target: those asked for, those kept as expression, and those read back."""
    asked, kept, read_back = Counter[str](), Counter[str](), Counter[str]()
    for total in totals:
        if total.kept and total.reason == READ_BACK:
            read_back[total.label] += total.count
        if total.role == "responder":
            asked[total.label] += total.count
            if total.kept and total.reason == "expression":
                kept[total.label] += total.count
    return asked, kept, read_back


def _f1(records: RunRecords, stage: str) -> dict[str, float]:
    return (records.evaluation(stage) or {}).get("per_label_f1", {})
