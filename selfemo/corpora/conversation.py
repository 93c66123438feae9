"""Represent every corpus in one way: conversations of turns, each with the emotion labels its
annotators gave."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Turn:
    """One utterance, with its speaker and annotations."""

    speaker: str
    text: str
    labels: tuple[str, ...] = ()
    """Gold labels, primary first; empty if nobody annotated the turn."""
    votes: tuple[tuple[str, int], ...] = ()
    """(label, annotators who chose it), most votes first; empty if the corpus records none."""


@dataclass(frozen=True)
class Conversation:
    """A dialogue in one split of one corpus."""

    corpus: str
    split: str
    """"train", "dev" or "test"."""
    dialogue_id: str
    """Unique within (corpus, split)."""
    turns: tuple[Turn, ...] = field(repr=False)

    @property
    def key(self) -> str:
        """Name that is unique across corpora: "corpus/split/dialogue_id"."""
        return f"{self.corpus}/{self.split}/{self.dialogue_id}"

    @property
    def is_labelled(self) -> bool:
        """Whether any turn has labels."""
        return any(turn.labels for turn in self.turns)


@dataclass(frozen=True)
class Corpus:
    """A loaded corpus: its closed label set and its conversations by split, in file order."""

    name: str
    labels: tuple[str, ...]
    """The closed label set, alphabetical; answers are parsed against it."""
    conversations: tuple[Conversation, ...] = field(repr=False)
    barred_texts: tuple[str, ...] = field(repr=False, default=())
    """Dev and test texts of other corpora, which training must not meet either."""
    revealed: tuple[Conversation, ...] = field(repr=False, default=())
    """Dialogues that `conversations` holds without their labels, here with them: for openings alone."""

    def split(self, name: str) -> tuple[Conversation, ...]:
        """Return the conversations of one split, in file order."""
        return tuple(c for c in self.conversations if c.split == name)
