"""Records of self-play: samples, in groups, in episodes. Rewards, flywheel and training all use them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from selfemo.corpora.conversation import Turn
from selfemo.emotions.answer import Reading
from selfemo.selfplay.consensus import Consensus
from selfemo.selfplay.gates import Gate

Role = Literal["recognizer", "responder"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class Opening:
    """The start of an episode: a dialogue prefix, whose last turn is read first."""

    index: int
    """Position among the iteration's openings over all ranks; the episode's sampling seeds derive from it."""
    source: str
    """Conversation key, "corpus/split/dialogue_id", of the real dialogue it comes from."""
    turns: tuple[Turn, ...] = field(repr=False)
    """The prefix. Labels of its last turn, if it has any, are the first recognizer group's gold set."""
    next_turn: Turn | None = None
    """The real dialogue's next turn, if it has one: its speaker and its labels are the first reply's."""
    parent: int | None = None
    """Flywheel record that keeps the prefix; None for a real dialogue."""
    speakers: tuple[str, ...] = ()
    """Everyone who speaks in the dialogue, inside the prefix or after it, in order of appearance."""
    taught: tuple[str, ...] | None = None
    """The teacher's labels of the last turn; None if it has not read it."""


@dataclass(frozen=True)
class Sample:
    """One completion of one prompt."""

    prompt_ids: tuple[int, ...] = field(repr=False)
    completion_ids: tuple[int, ...] = field(repr=False)
    """Sampled ids, with the end-of-turn token if it was sampled."""
    rollout_logprobs: tuple[float, ...] = field(repr=False)
    """The engine's natural-log probability of each completion id."""
    seed: int
    text: str
    finished: bool
    """False if the token cap cut the completion."""
    reading: Reading | None
    """Recognizer: its own answer. Responder: the recognizer's reading of the reply; None if the reply failed
    a gate."""
    gates: tuple[Gate, ...] = ()
    """Gates that a reply failed; always empty for a recognizer."""
    view: str = "plain"
    """Recognizer: the view (selfemo.selfplay.views) that its prompt shows. Responder: always plain."""


@dataclass(frozen=True)
class Group:
    """The samples of one turn: the set over which SELF-GRPO normalises rewards.

    They share one prompt, or have one per view.
    """

    role: Role
    iteration: int
    episode: int
    """The opening's index."""
    turn: int
    """Turn of the episode, from 0."""
    source: str
    """Conversation key of the opening."""
    parent: int | None
    """Flywheel record that the opening continues; None for a real dialogue."""
    context: tuple[Turn, ...] = field(repr=False)
    """The dialogue up to and including the turn that is read (recognizer) or answered (responder)."""
    speaker: str
    """The speaker who is read, or who answers."""
    gold: tuple[str, ...] | None
    """Recognizer: annotated labels of the turn, None if nobody annotated it. Responder: None."""
    target: tuple[str, ...] | None
    """Responder: the emotions that the reply should show. Recognizer: those a generated turn was written for,
    else None."""
    max_tokens: int
    temperature: float
    samples: tuple[Sample, ...]
    consensus: Consensus
    """Vote over the samples' readings; for a responder, over the readings of its replies."""
    taught: tuple[str, ...] | None = None
    """Recognizer: the teacher's labels of a real turn without annotation; None if there are none."""

    @property
    def given(self) -> tuple[str, ...] | None:
        """Labels that its answers are compared with: the annotators', else the teacher's, else None."""
        return self.gold or self.taught

    @property
    def is_real_unlabelled(self) -> bool:
        """Whether it reads a turn of a real dialogue that nobody annotated."""
        return self.role == "recognizer" and self.turn == 0 and self.parent is None and not self.gold

    @property
    def generated(self) -> bool:
        """Whether the model wrote, in this episode, the turn that is read."""
        return self.turn > 0


@dataclass(frozen=True)
class Episode:
    """One dialogue played from an opening."""

    opening: Opening
    groups: tuple[Group, ...]
    """In the order played: recognizer and responder groups in alternation."""
    turns: tuple[Turn, ...] = field(repr=False)
    """The opening's turns, and the replies that were appended."""
