"""What self-play produces: samples, in groups, in episodes. The same values feed rewards, flywheel and training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from selfemo.corpora.conversation import Turn
from selfemo.emotions.answer import Reading
from selfemo.selfplay.consensus import Consensus
from selfemo.selfplay.gates import Gate

Role = Literal["recognizer", "responder"]


@dataclass(frozen=True)
class Opening:
    """Where an episode starts: a dialogue prefix whose last turn is read first."""

    index: int
    """Position among the iteration's seeds over all ranks; the episode's sampling seeds derive from it."""
    source: str
    """Conversation key, "corpus/split/dialogue_id", of the real dialogue it comes from."""
    turns: tuple[Turn, ...] = field(repr=False)
    """The prefix; labels of the last turn, where present, are the first recognizer group's gold set."""
    next_turn: Turn | None = None
    """The real dialogue's next turn, where it has one: its speaker and its labels are the first reply's."""
    parent: int | None = None
    """Flywheel record that the prefix was kept in; None for a real dialogue."""
    speakers: tuple[str, ...] = ()
    """Everyone who speaks in the dialogue, prefix or not, in order of appearance."""


@dataclass(frozen=True)
class Sample:
    """One completion of one prompt."""

    prompt_ids: tuple[int, ...] = field(repr=False)
    completion_ids: tuple[int, ...] = field(repr=False)
    """Sampled ids, the end-of-turn token included when it was sampled."""
    rollout_logprobs: tuple[float, ...] = field(repr=False)
    """The engine's natural-log probability of each completion id."""
    seed: int
    text: str
    finished: bool
    """False when the token cap cut the completion."""
    reading: Reading | None
    """Recognizer: its own answer. Responder: what the recognizer read in the reply, None where a gate failed before."""
    gates: tuple[Gate, ...] = ()
    """Gates that a reply failed; always empty for a recognizer."""
    view: str = "plain"
    """Recognizer: the view (selfemo.selfplay.views) that its prompt shows. Responder: always plain."""


@dataclass(frozen=True)
class Group:
    """The samples of one turn, in one prompt or in one for each view: what SELF-GRPO normalises over."""

    role: Role
    iteration: int
    episode: int
    """The seed's index."""
    turn: int
    """Turn of the episode, from 0."""
    source: str
    """Conversation key of the seed."""
    parent: int | None
    """Flywheel record the episode was seeded from."""
    context: tuple[Turn, ...] = field(repr=False)
    """The dialogue up to and including the turn that is read (recognizer) or answered (responder)."""
    speaker: str
    """Who is read, or who answers."""
    gold: tuple[str, ...] | None
    """Recognizer: annotated labels of the turn, None where nobody annotated it. Responder: None."""
    target: tuple[str, ...] | None
    """Responder: the emotions the reply should show. Recognizer: those that a generated turn was written for, else None."""
    max_tokens: int
    temperature: float
    samples: tuple[Sample, ...]
    consensus: Consensus
    """Vote over the samples' readings; for a responder, over what the replies were read as."""

    @property
    def generated(self) -> bool:
        """Whether the turn that is read was written by the model in this episode."""
        return self.turn > 0


@dataclass(frozen=True)
class Episode:
    """One dialogue played out from a seed."""

    seed: Opening
    groups: tuple[Group, ...]
    """In the order played: recognizer and responder groups by turns."""
    turns: tuple[Turn, ...] = field(repr=False)
    """The seed's turns and the replies that were appended."""
