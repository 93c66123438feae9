"""Hides the labels of a seeded share of the training dialogues, before anything else reads the corpus.

`hide_labels` is the only place that does. It returns a corpus whose hidden turns have no labels and no votes,
so that whatever reads that corpus (supervised examples, label shares and caps, transitions, openings,
records) cannot see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from selfemo.common.errors import UserError
from selfemo.common.seeds import derive_seed
from selfemo.corpora.conversation import Conversation, Corpus
from selfemo.corpora.overlap import TRAIN


@dataclass(frozen=True)
class LabelCounts:
    """Counts the training dialogues of a run by kind."""

    labelled_dialogues: int
    """Dialogues with at least one labelled turn."""
    labelled_turns: int
    """Turns with labels."""
    unlabelled_dialogues: int
    """Dialogues without any."""
    unlabelled_turns: int
    """Turns of those dialogues."""
    revealed_dialogues: int
    """Of the dialogues without labels, those whose labels corpus.reveal_hidden gives to openings."""

    def __str__(self) -> str:
        oracle = (
            f", {self.revealed_dialogues:,} of them revealed to self-play" if self.revealed_dialogues else ""
        )
        return (
            f"{self.labelled_dialogues:,} dialogues with labels ({self.labelled_turns:,} turns), "
            f"{self.unlabelled_dialogues:,} without ({self.unlabelled_turns:,} turns){oracle}"
        )


def label_counts(corpus: Corpus) -> LabelCounts:
    """Count the training split of a corpus as the run sees it."""
    labelled = [c for c in corpus.split(TRAIN) if c.is_labelled]
    unlabelled = [c for c in corpus.split(TRAIN) if not c.is_labelled]
    return LabelCounts(
        len(labelled),
        sum(bool(turn.labels) for c in labelled for turn in c.turns),
        len(unlabelled),
        sum(len(c.turns) for c in unlabelled),
        len(corpus.revealed),
    )


def draw_labelled(conversations: Sequence[Conversation], share: float, seed: int) -> set[str]:
    """Draw the keys of the dialogues that keep their labels: the nearest whole number to `share` of them.

    Each dialogue has a rank that depends on the seed and its key alone, and the lowest ranks are drawn: what
    a smaller share draws, a larger one draws too.
    """
    ranked = sorted(
        (c.key for c in conversations), key=lambda key: (derive_seed(seed, "labelled dialogues", key), key)
    )
    return set(ranked[: int(share * len(ranked) + 0.5)])


def hide_labels(corpus: Corpus, share: float, seed: int, reveal: bool = False) -> Corpus:
    """Keep labels on a share of the labelled training dialogues alone; dev and test keep theirs.

    Args:
        share: of the training dialogues that have labels; 1 returns the corpus as it is.
        reveal: keep the hidden dialogues, labels included, in `revealed`, where openings alone look.

    Raises:
        UserError: no dialogue would keep its labels.
    """
    if share == 1:
        return corpus
    annotated = [c for c in corpus.split(TRAIN) if c.is_labelled]
    shown = draw_labelled(annotated, share, seed)
    if not shown:
        raise UserError(
            f"corpus.labelled_share={share} leaves no labelled turn: it is none of the {len(annotated)} "
            f"labelled training dialogues of {corpus.name}: raise it"
        )
    hidden = {c.key: c for c in annotated if c.key not in shown}
    conversations = tuple(without_labels(c) if c.key in hidden else c for c in corpus.conversations)
    return replace(corpus, conversations=conversations, revealed=tuple(hidden.values()) if reveal else ())


def without_labels(conversation: Conversation) -> Conversation:
    """Strip a dialogue to bare text: no turn has labels or votes."""
    return replace(
        conversation, turns=tuple(replace(turn, labels=(), votes=()) for turn in conversation.turns)
    )
