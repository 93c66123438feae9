"""Find texts that two sets of dialogues share, so that a model is not trained on one and reported
on the other.

MELD and EmoryNLP are both Friends and share scenes. Two texts match if their keys are equal:
letters, digits and marks alone, case folded, accents of Latin letters removed. Only long texts, whose
key is at least MIN_KEY_CHARS wide, identify a shared scene, since "Oh my God!" occurs everywhere. By this
definition 263 of the 1,329 long texts of MELD's test split occur in EmoryNLP's training split.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import regex

from selfemo.corpora.conversation import Conversation, Corpus, Turn
from selfemo.corpora.words import fold, without_latin_accents

TRAIN = "train"
CACHED_KEYS = 16_384
"""Number of texts whose key is remembered: a turn is the context of several groups."""
MIN_KEY_CHARS = 25
"""Width of a key from which a text counts as long (about six words), in characters; those that Unicode
calls wide (UAX 11: Chinese, Japanese, Korean) count two."""
_LEFT_OUT = regex.compile(r"[^\p{L}\p{N}\p{M}]+")


@lru_cache(maxsize=CACHED_KEYS)
def overlap_key(text: str) -> str:
    """Reduce a text to the key that is compared: letters, digits and marks in compatibility form, case
    folded, without the accents of Latin letters. Marks of other scripts are vowels, and stay."""
    folded = fold(text)
    return _LEFT_OUT.sub("", folded if folded.isascii() else without_latin_accents(folded))


def is_long(key: str) -> bool:
    """Tell whether a key is wide enough to identify a scene."""
    wide = 0 if key.isascii() else sum(unicodedata.east_asian_width(char) in "WF" for char in key)
    return len(key) + wide >= MIN_KEY_CHARS


def texts_of(conversations: Iterable[Conversation]) -> list[str]:
    """List every utterance, in order."""
    return [turn.text for conversation in conversations for turn in conversation.turns]


class HeldOutTexts:
    """Texts of dev and test, which neither training dialogues nor self-generated ones may repeat."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._keys = frozenset(map(overlap_key, texts))

    def matches(self, text: str) -> bool:
        """Return True if a text equals a held-out long text up to case, punctuation and blanks."""
        key = overlap_key(text)
        return is_long(key) and key in self._keys

    def bars(self, text: str, context: Sequence[Turn] = ()) -> bool:
        """Return True if a turn may not be learned from: it equals any held-out text, or its
        context holds a long one.

        Short talk ("What?") occurs in every split. A held-out short text bars a turn that equals it, but not
        the turns that have it as context.
        """
        return overlap_key(text) in self._keys or any(self.matches(turn.text) for turn in context)

    def matches_any(self, conversation: Conversation) -> bool:
        """Return True if any turn of a dialogue equals a held-out long text."""
        return any(self.matches(turn.text) for turn in conversation.turns)


def held_out_texts(corpus: Corpus) -> list[str]:
    """List every dev and test text of a corpus, and those of other corpora that it bars."""
    return [*texts_of(c for c in corpus.conversations if c.split != TRAIN), *corpus.barred_texts]


def hold_out(corpus: Corpus, others: Sequence[Corpus]) -> Corpus:
    """Remove the training dialogues that hold a long dev or test text of the others; the result
    bars those texts.

    Whole dialogues go, not turns: one shared line means a shared scene.
    """
    barred = [text for other in others for text in held_out_texts(other)]
    keys = HeldOutTexts(barred)
    kept = tuple(c for c in corpus.conversations if c.split != TRAIN or not keys.matches_any(c))
    return replace(corpus, conversations=kept, barred_texts=(*corpus.barred_texts, *barred))


@dataclass(frozen=True)
class Overlap:
    """Number of texts of one set that occur in another."""

    long_texts: int
    """Long texts of the first set, repeats included."""
    shared: int
    """Those that occur in the second set."""


def measure_overlap(texts: Sequence[str], other: Iterable[str]) -> Overlap:
    """Count the long texts among `texts`, and those of them that occur in `other`."""
    other_texts = HeldOutTexts(other)
    long_texts = [text for text in texts if is_long(overlap_key(text))]
    return Overlap(len(long_texts), sum(other_texts.matches(text) for text in long_texts))
