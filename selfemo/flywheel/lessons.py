"""Holds what kept records teach: supervised examples of later steps.

A consensus record teaches the recognizer its labels. A kept reply teaches both tasks: to read the emotions it
was written for, and to write such a reply. If a teacher reads replies, those teach that it reads as they were
meant.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from selfemo.corpora.conversation import Turn
from selfemo.flywheel.delivered import Delivered, DeliveredItems
from selfemo.flywheel.record import Record
from selfemo.flywheel.rule import CONSENSUS, READ_BACK
from selfemo.selfplay.openings import Place, place_of
from selfemo.selfplay.records import Opening, Role

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
    shares: tuple[tuple[str, float], ...] = ()
    """Recognizer: (label, share) of the teacher's vote, the largest first; empty without a teacher."""

    def answers(self, most: int) -> list[tuple[tuple[str, ...], float]]:
        """Return the sets of labels that it teaches, and their weights, which add up to 1.

        Args:
            most: labels of the vote that are taught. Each is an answer of its own, weighed by its share: so
                weighed, a label's cross-entropies add up to that with the vote. The likeliest comes with the
                labels that the vote puts after it.
        """
        if most == 1 or not self.shares:
            return [(self.labels, 1.0)]
        parts = dict(self.shares[:most])
        total = sum(parts.values())
        return [
            (self.labels if label == self.labels[0] else (label,), part / total)
            for label, part in parts.items()
        ]


@dataclass(frozen=True)
class Reply:
    """A kept reply, and what it was written for."""

    record_id: int
    """The responder's record."""
    source: str
    context: tuple[Turn, ...] = field(repr=False)
    """The dialogue that it answers."""
    speaker: str
    labels: tuple[str, ...]
    text: str

    @property
    def lessons(self) -> tuple[Lesson, Lesson]:
        """How to read it, and how to write it."""
        read = (*self.context, Turn(self.speaker, self.text, self.labels))
        return (
            Lesson("recognizer", read, self.speaker, self.labels),
            Lesson("responder", self.context, self.speaker, self.labels, self.text),
        )

    def opening(self, index: int) -> Opening:
        """Make an opening that ends with the reply, without labels, for a teacher to read."""
        turns = (*self.context, Turn(self.speaker, self.text))
        return Opening(index, self.source, turns, parent=self.record_id)


def consensus_on(record: Record) -> tuple[Place, Lesson] | None:
    """Return the real turn that a kept consensus record labels, and how to read it; None if it is another."""
    if record.reason != CONSENSUS:
        return None
    lesson = Lesson("recognizer", record.context, record.speaker, record.labels, shares=record.taught_shares)
    return place_of(record.source, record.context), lesson


def reply_of(record: Record) -> Reply | None:
    """Return the reply that a record keeps, or that a teacher has read as meant; None if it is another."""
    if record.reason == "expression":
        return Reply(
            record.record_id, record.source, record.context, record.speaker, record.labels, record.text
        )
    if record.reason == READ_BACK and record.parent is not None:
        before = record.context[:-1]
        return Reply(record.parent, record.source, before, record.speaker, record.labels, record.text)
    return None


class Lessons:
    """The kept records that teach; every rank holds the same."""

    def __init__(self, has_reader: bool = False) -> None:
        """Hold nothing yet.

        Args:
            has_reader: a teacher reads the kept replies; without one they teach at once.
        """
        self._read: dict[Place, tuple[int, Lesson]] = {}
        self._replies: deque[tuple[int, Delivered[Reply]]] = deque(maxlen=KEPT_REPLIES)
        self._unread = deque(self._replies, maxlen=KEPT_REPLIES) if has_reader else self._replies

    def add(self, record: Record) -> None:
        """Take up a kept record; the newest consensus on a turn replaces older ones."""
        if agreed := consensus_on(record):
            self.take_up(record.iteration, *agreed)
        if reply := reply_of(record):
            self.take_up_reply(record.iteration, Delivered.own(reply), record.reason == READ_BACK)

    def take_up(self, iteration: int, place: Place, lesson: Lesson) -> None:
        """Take up a consensus on a real turn, as `add` does."""
        self._read[place] = (iteration, lesson)

    def take_up_reply(self, iteration: int, reply: Delivered[Reply], is_read: bool) -> None:
        """Take up a kept reply, as `add` does; it is not unpacked.

        Args:
            is_read: a teacher has read it as it was meant.
        """
        (self._replies if is_read else self._unread).append((iteration, reply))

    def unread(self, since: int) -> list[Reply]:
        """List the kept replies since an iteration, for a teacher to read."""
        return [reply.value for made, reply in self._unread if made >= since]

    def labels(self, since: int) -> Mapping[Place, tuple[str, ...]]:
        """Return the consensus on real turns, of records since an iteration."""
        return {place: lesson.labels for place, (made, lesson) in self._read.items() if made >= since}

    def draw(self, count: int, reply_share: float, since: int, rng: random.Random) -> Sequence[Lesson]:
        """Draw lessons from records since an iteration, each at most once if they suffice.

        Args:
            reply_share: share that come from kept replies, half of them to read and half to write, as far as
                there are any.

        Returns:
            `count` lessons, of which those from replies are unpacked when they are looked at; none if
            nothing has been kept.
        """
        read = [lesson for made, lesson in self._read.values() if made >= since]
        replies = [reply for made, reply in self._replies if made >= since]
        # a fraction of a lesson is drawn, so that steps of few examples have the share on average
        wanted = math.floor(count * reply_share + rng.random())
        from_replies = (wanted if read else count) if replies else 0
        chosen = _choose(read, count - from_replies, rng) if read else []
        drawn = _choose(replies, from_replies, rng)
        return DeliveredItems(
            [
                *map(Delivered.own, chosen),
                *(Delivered(partial(_lesson, reply, i % 2)) for i, reply in enumerate(drawn)),
            ]
        )


def _lesson(reply: Delivered[Reply], place: int) -> Lesson:
    return reply.value.lessons[place]


def _choose[T](items: list[T], count: int, rng: random.Random) -> list[T]:
    return rng.sample(items, count) if count <= len(items) else rng.choices(items, k=count)
