"""Prepares self-play dialogues for the page: turns in order, under each the candidates sampled there.

A recognizer group stands under the turn it read. A responder group stands under the reply that was
chosen from it, or at the end if no reply could be chosen and the episode ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from selfemo.records.reading import Json

MAX_DIALOGUES = 40
"""Dialogues on a page, unless asked otherwise. Of more, evenly spaced ones are shown, first and last
included.
"""


@dataclass(frozen=True)
class CandidateView:
    """One sample."""

    view: str
    """The view that its prompt shows; plain if the record names none."""
    text: str
    read: tuple[str, ...]
    """Emotions it answered (recognizer) or was read as showing (responder). Empty if it is outside the
    grammar or a gate failed.
    """
    score: float
    rewards: tuple[tuple[str, float], ...]
    total: float | None
    advantage: float | None
    failed_gates: tuple[str, ...]
    chosen: bool


@dataclass(frozen=True)
class GroupView:
    """The samples of one turn."""

    role: str
    speaker: str
    gold: tuple[str, ...]
    target: tuple[str, ...]
    consensus: tuple[str, ...]
    agreement: float
    weight: float | None
    """Weight in the loss. 0: the group carries no ranking."""
    candidates: tuple[CandidateView, ...]

    @property
    def views(self) -> tuple[str, ...]:
        """List the views that its samples were shown, each once."""
        return tuple(dict.fromkeys(candidate.view for candidate in self.candidates))


@dataclass(frozen=True)
class TurnView:
    """One turn with the groups that belong to it."""

    speaker: str
    side: int
    """0 for the dialogue's first speaker, 1 for the second, and so on: decides the side of the page."""
    text: str
    labels: tuple[str, ...]
    generated: bool
    groups: tuple[GroupView, ...]


@dataclass(frozen=True)
class DialogueView:
    """One episode."""

    iteration: int
    source: str
    parent: int | None
    """Flywheel record that its opening continues; None for a real dialogue."""
    turns: tuple[TurnView, ...]
    unanswered: GroupView | None
    """Candidates for the last reply, if none of them could be chosen."""
    reward: float | None
    """Mean total reward of its candidates."""


def dialogue_views(dialogues: Sequence[Json], limit: int = MAX_DIALOGUES) -> list[DialogueView]:
    """Return at most `limit` dialogues, in order."""
    count = min(limit, len(dialogues))
    if count == 0:
        return []
    chosen = [round(i * (len(dialogues) - 1) / max(1, count - 1)) for i in range(count)]
    return [_dialogue(dialogues[index]) for index in chosen]


def _dialogue(record: Json) -> DialogueView:
    turns, groups = record["dialogue"], record["groups"]
    recognised = [g for g in groups if g["role"] == "recognizer"]
    answered = [g for g in groups if g["role"] == "responder"]
    seed_turns = record.get("seed_turns", len(turns) - len(answered))
    generated = len(turns) - seed_turns
    views: dict[int, list[GroupView]] = {index: [] for index in range(len(turns))}
    for group in answered[:generated]:
        views[seed_turns + group["turn"]].append(_group(group))
    for group in recognised:
        views[seed_turns - 1 + group["turn"]].append(_group(group))
    sides: dict[str, int] = {}
    for turn in turns:
        sides.setdefault(turn["speaker"], len(sides))
    totals = [c["total"] for g in groups for c in g["candidates"] if c.get("total") is not None]
    return DialogueView(
        iteration=record["iteration"],
        source=record["source"],
        parent=record.get("parent"),
        turns=tuple(
            TurnView(
                t["speaker"],
                sides[t["speaker"]],
                t["text"],
                tuple(t["labels"]),
                i >= seed_turns,
                tuple(views[i]),
            )
            for i, t in enumerate(turns)
        ),
        unanswered=_group(answered[generated]) if len(answered) > generated else None,
        reward=sum(totals) / len(totals) if totals else None,
    )


def _group(record: Json) -> GroupView:
    candidates = record["candidates"]
    admissible = [i for i, c in enumerate(candidates) if c.get("read") and not c["failed_gates"]]
    # the rule by which selfplay chooses a reply
    best = max(admissible, key=lambda i: (candidates[i]["score"], -i), default=None)
    return GroupView(
        role=record["role"],
        speaker=record["speaker"],
        gold=tuple(record["gold"]),
        target=tuple(record["target"]),
        consensus=tuple(record["consensus"]),
        agreement=record["agreement"],
        weight=candidates[0].get("weight"),
        candidates=tuple(
            CandidateView(
                view=c.get("view", "plain"),
                text=c["text"],
                read=tuple(c.get("read", ())),
                score=c["score"],
                rewards=tuple(c["rewards"].items()),
                total=c.get("total"),
                advantage=c.get("advantage"),
                failed_gates=tuple(c["failed_gates"]),
                chosen=record["role"] == "responder" and i == best,
            )
            for i, c in enumerate(candidates)
        ),
    )
