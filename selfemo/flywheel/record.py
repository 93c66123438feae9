"""Defines a flywheel record: a group, the decision on it, and everything needed to generate it again."""

from __future__ import annotations

from dataclasses import dataclass, field

from selfemo.corpora.conversation import Turn
from selfemo.emotions.answer import Answer
from selfemo.rewards.scoring import ScoredGroup
from selfemo.selfplay.records import Role, Sample


@dataclass(frozen=True)
class Candidate:
    """One sample of the recorded group."""

    seed: int
    text: str
    completion_ids: tuple[int, ...] = field(repr=False)
    finished: bool
    reading: str
    """Labels as answered (recognizer) or as read in the reply (responder); "" for a format failure, or if a
    gate stopped the reply."""
    gates: tuple[str, ...]
    rewards: tuple[float, ...]
    """One entry per name in the record's `components`."""
    score: float
    """Plain smoothed IoU."""
    view: str = "plain"
    """The view that its prompt shows; plain for records written before there were views."""


@dataclass(frozen=True)
class Record:
    """A group's record. `record_id` counts up by one from 1."""

    record_id: int
    iteration: int
    episode: int
    turn: int
    role: Role
    source: str
    """Conversation key of the real dialogue that the episode descends from."""
    parent: int | None
    """Record that the episode's opening continues; None if it is a real dialogue."""
    weight_version: int
    """Version of the weights that sampled. Only under them does a replay equal the record."""
    speaker: str
    text: str
    """The turn: the one that was read (recognizer), or the best reply (responder)."""
    labels: tuple[str, ...]
    """Labels that the best sample gives the turn (recognizer), or the target it was written for (responder);
    primary first."""
    gold: tuple[str, ...]
    target: tuple[str, ...]
    score: float
    """Smoothed IoU of the best sample."""
    agreement: float
    """Mean pairwise smoothed IoU of the group that read the turn; 0 if no group read it."""
    kept: bool
    reason: str
    """Why it was kept or dropped (selfemo.flywheel.rule)."""
    prompt_ids: tuple[int, ...] = field(repr=False)
    """The best sample's prompt; every candidate's, unless `view_prompts` says otherwise."""
    max_tokens: int
    temperature: float
    context: tuple[Turn, ...] = field(repr=False)
    """The dialogue up to the turn that was read or answered; labels of real turns included."""
    components: tuple[str, ...]
    candidates: tuple[Candidate, ...] = field(repr=False)
    view_prompts: tuple[tuple[str, tuple[int, ...]], ...] = field(repr=False, default=())
    """(view, prompt ids) of a group that was shown in several views; empty for one."""
    taught_shares: tuple[tuple[str, float], ...] = ()
    """(label, share) of a teacher's vote, aligned, the largest first; empty if no teacher read the turn."""

    @property
    def dialogue(self) -> tuple[Turn, ...]:
        """The context with the recorded turn at its end, which carries `labels`."""
        before = self.context if self.role == "responder" else self.context[:-1]
        return (*before, Turn(self.speaker, self.text, self.labels))

    def prompt_of(self, candidate: Candidate) -> tuple[int, ...]:
        """Return the prompt that a candidate answered."""
        return dict(self.view_prompts).get(candidate.view, self.prompt_ids)


def candidates_of(scored: ScoredGroup) -> tuple[Candidate, ...]:
    """Convert the group's samples to a record's candidates."""
    return tuple(
        Candidate(
            s.seed, s.text, s.completion_ids, s.finished, reading_text(s), s.gates, rewards, score, s.view
        )
        for s, rewards, score in zip(scored.group.samples, scored.rewards, scored.scores, strict=True)
    )


def view_prompts_of(scored: ScoredGroup) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the group's prompts as a record holds them: by view if it has several, else ()."""
    prompts = {sample.view: sample.prompt_ids for sample in scored.group.samples}
    return tuple(prompts.items()) if len(prompts) > 1 else ()


def reading_text(sample: Sample) -> str:
    """Write a sample's reading as an answer; "" for a format failure, or if nothing was read."""
    return ", ".join(sample.reading.labels) if isinstance(sample.reading, Answer) else ""
