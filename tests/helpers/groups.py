"""Make groups by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from selfemo.corpora.conversation import Turn
from selfemo.emotions.affinity import identity_affinity
from selfemo.emotions.answer import Answer, FormatFailure, Reading
from selfemo.emotions.similarity import SmoothedIoU
from selfemo.selfplay.consensus import vote
from selfemo.selfplay.records import Group, Sample
from tests.helpers.scripted import LABELS, CharEncoder, turns

SCORE = SmoothedIoU(identity_affinity(LABELS), 0.05)
CONTEXT = turns("Ann: how was it", "Bo: we finally won the cup")


def reading(text: str) -> Reading:
    """Make an answer, or a format failure from the empty text."""
    return Answer(tuple(text.split(", "))) if text else FormatFailure("empty")


def recognizer_group(
    answers: Sequence[str],
    gold: tuple[str, ...] | None,
    *,
    turn: int = 0,
    target: tuple[str, ...] | None = None,
    context: Sequence[Turn] = CONTEXT,
    views: Sequence[str] = (),
    other_views: bool = False,
) -> Group:
    """`views`: the view of each answer; plain if none are named."""
    readings, views = [reading(text) for text in answers], views or ["plain"] * len(answers)
    samples = [_sample(i, text, readings[i], view=views[i]) for i, text in enumerate(answers)]
    consensus = vote(readings, SCORE, views, other_views)
    return replace(_group("recognizer", context, samples, readings, gold, target, turn), consensus=consensus)


def responder_group(
    replies: Sequence[tuple[str, str | None]],
    target: tuple[str, ...],
    *,
    turn: int = 0,
    context: Sequence[Turn] = CONTEXT,
) -> Group:
    """Make a group from (text, the emotions read in it); None stands for a reply that a gate stopped."""
    readings = [None if read is None else reading(read) for _, read in replies]
    samples = [
        _sample(i, text, readings[i], () if readings[i] is not None else ("leak",))
        for i, (text, _) in enumerate(replies)
    ]
    return _group("responder", context, samples, [r for r in readings if r is not None], None, target, turn)


def _sample(index: int, text: str, read: Reading | None, gates: tuple = (), view: str = "plain") -> Sample:
    ids = CharEncoder().encode_completion(text)
    return Sample((1, 2, 3), ids, (-0.5,) * len(ids), 1000 + index, text, True, read, gates, view)


def _group(role, context, samples, readings, gold, target, turn) -> Group:
    return Group(
        role=role,
        iteration=3,
        episode=1,
        turn=turn,
        source="toy/train/1",
        parent=None,
        context=tuple(context),
        speaker="Ann" if role == "responder" else context[-1].speaker,
        gold=gold,
        target=target,
        max_tokens=12,
        temperature=1.0,
        samples=tuple(samples),
        consensus=vote(readings, SCORE),
    )
