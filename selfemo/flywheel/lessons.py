"""Holds what kept records teach: supervised examples of later steps.

A consensus record teaches the recognizer its labels. A kept reply teaches both tasks: to read the emotions it
was written for, and to write such a reply.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from selfemo.corpora.conversation import Turn
from selfemo.flywheel.record import Record
from selfemo.flywheel.rule import CONSENSUS
from selfemo.selfplay.openings import Place, place_of
from selfemo.selfplay.records import Role

KEPT_REPLIES = 4096
"""Number of kept replies, the newest, that are taught; bounds memory."""


@dataclass(frozen=True)
class Lesson:
    """One supervised example, before it is a prompt."""

    role: Role
    turns: tuple[Turn, ...] = field(repr=False)
    """Recognizer: the dialogue up to the turn to read. Responder: the dialogue to answer."""
    speaker: str
    labels: tuple[str, ...]
    """Recognizer: the answer. Responder: the emotions to show."""
    text: str = ""
    """Responder: the reply."""


@dataclass(frozen=True)
class Taught:
    """What one kept record teaches."""

    iteration: int
    place: Place | None
    """The real turn that a consensus record labels; None: the record is of a reply."""
    read: Lesson
    write: Lesson | None = None
    """How to write the reply."""


def taught_by(record: Record) -> Taught | None:
    """Return what a kept record teaches; None if nothing."""
    if record.reason == CONSENSUS:
        lesson = Lesson("recognizer", record.context, record.speaker, record.labels)
        return Taught(record.iteration, place_of(record.source, record.context), lesson)
    if record.reason == "expression":
        read = Lesson("recognizer", record.dialogue, record.speaker, record.labels)
        write = Lesson("responder", record.context, record.speaker, record.labels, record.text)
        return Taught(record.iteration, None, read, write)
    return None


class Lessons:
    """The kept records that teach; every rank holds the same."""

    def __init__(self) -> None:
        self._read: dict[Place, tuple[int, Lesson]] = {}
        self._replies: deque[tuple[int, Lesson, Lesson]] = deque(maxlen=KEPT_REPLIES)

    def add(self, record: Record) -> None:
        """Take up a kept record; the newest consensus on a turn replaces older ones."""
        if taught := taught_by(record):
            self.take_up(taught)

    def take_up(self, taught: Taught) -> None:
        """Take up what a kept record teaches, as `add` does."""
        if taught.place is not None:
            self._read[taught.place] = (taught.iteration, taught.read)
        elif taught.write is not None:
            self._replies.append((taught.iteration, taught.read, taught.write))

    def labels(self, since: int) -> Mapping[Place, tuple[str, ...]]:
        """Return the consensus on real turns, of records since an iteration."""
        return {place: lesson.labels for place, (made, lesson) in self._read.items() if made >= since}

    def draw(self, count: int, reply_share: float, since: int, rng: random.Random) -> list[Lesson]:
        """Draw lessons from records since an iteration, each at most once if they suffice.

        Args:
            reply_share: share that come from kept replies, half of them to read and half to write, as far as
                there are any.

        Returns:
            `count` lessons; none if nothing has been kept.
        """
        read = [lesson for made, lesson in self._read.values() if made >= since]
        replies = [pair for made, *pair in self._replies if made >= since]
        from_replies = (round(count * reply_share) if read else count) if replies else 0
        chosen = _choose(read, count - from_replies, rng) if read else []
        return chosen + [pair[i % 2] for i, pair in enumerate(_choose(replies, from_replies, rng))]


def _choose[T](items: list[T], count: int, rng: random.Random) -> list[T]:
    return rng.sample(items, count) if count <= len(items) else rng.choices(items, k=count)
