"""Texts that two sets of dialogues share: what must not be trained on before reporting the other.

MELD and EmoryNLP are both Friends and share scenes. Two texts match when their keys do: letters and digits alone, lower case,
accents removed. To tell a shared scene only long texts count, those whose key has at least MIN_KEY_CHARS characters, since "Oh my God!"
matches everywhere and proves nothing. By this definition 263 of the 1,329 long texts of MELD's test split occur in EmoryNLP's training
split.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from selfemo.corpora.conversation import Conversation, Corpus, Turn

TRAIN = "train"
MIN_KEY_CHARS = 25
"""Length of a key, in characters, from which a text counts as long (about six words)."""


def overlap_key(text: str) -> str:
    """What is compared: the letters and digits of a text in compatibility form, lower case, without accents."""
    return "".join(char for char in unicodedata.normalize("NFKD", text).casefold() if char.isalnum())


def texts_of(conversations: Iterable[Conversation]) -> list[str]:
    """Every utterance, in order."""
    return [turn.text for conversation in conversations for turn in conversation.turns]


class HeldOutTexts:
    """A set of texts that may not be met again: those of dev and test, for training dialogues and for self-generated ones."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._keys = frozenset(map(overlap_key, texts))

    def matches(self, text: str) -> bool:
        """Whether a text equals a held-out long text up to case, punctuation and blanks."""
        key = overlap_key(text)
        return len(key) >= MIN_KEY_CHARS and key in self._keys

    def bars(self, text: str, context: Sequence[Turn] = ()) -> bool:
        """Whether a turn may not be learned from: it equals any held-out text, short ones included, or its context holds a long one.

        Short talk ("What?") stands in every split, so a context is not barred for it, but there is no need to learn more of it either.
        """
        return overlap_key(text) in self._keys or any(self.matches(turn.text) for turn in context)

    def matches_any(self, conversation: Conversation) -> bool:
        """Whether any turn of a dialogue does."""
        return any(self.matches(turn.text) for turn in conversation.turns)


def held_out_texts(corpus: Corpus) -> list[str]:
    """Every dev and test text of a corpus, and those of other corpora that it bars."""
    return [*texts_of(c for c in corpus.conversations if c.split != TRAIN), *corpus.barred_texts]


def hold_out(corpus: Corpus, others: Sequence[Corpus]) -> Corpus:
    """The corpus without the training dialogues that hold a long dev or test text of the others; it bars those texts from here on.

    Whole dialogues go, not turns: one shared line means a shared scene.
    """
    barred = [text for other in others for text in held_out_texts(other)]
    keys = HeldOutTexts(barred)
    kept = tuple(c for c in corpus.conversations if c.split != TRAIN or not keys.matches_any(c))
    return replace(corpus, conversations=kept, barred_texts=(*corpus.barred_texts, *barred))


@dataclass(frozen=True)
class Overlap:
    """How much of one set of texts occurs in another."""

    long_texts: int
    """Long texts of the first set, repeats included."""
    shared: int
    """Those that occur in the second set."""


def measure_overlap(texts: Sequence[str], other: Iterable[str]) -> Overlap:
    """The long ones among `texts` that occur in `other`."""
    other_texts = HeldOutTexts(other)
    long_texts = [text for text in texts if len(overlap_key(text)) >= MIN_KEY_CHARS]
    return Overlap(len(long_texts), sum(other_texts.matches(text) for text in long_texts))
