"""Gates: conditions that a reply must meet to earn its expression reward.

The reward reads emotions out of the reply with the model that wrote it. The shortest ways to a full reward
are therefore to say the label, to repeat a line that already carries it, or to write the other speakers'
turns too. Each gate closes one such way. A reply that fails a gate loses the whole expression reward, and the
gate's name is recorded with the sample.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Literal

import regex

from selfemo.corpora.conversation import Turn
from selfemo.corpora.words import fold, words
from selfemo.selfplay.prompts import clean_speaker

Gate = Literal["cut", "length", "leak", "copy", "turns"]

COPY_MIN_WORDS = 4
"""A shared run of fewer words is ordinary talk ("Oh my God")."""
COPY_SHARE = 0.8
"""If one shared run covers at least this share of a reply, the reply is a copy."""

_FAMILIES = (
    "anger angers angered angering angry angrier angriest angrily",
    "excite excites excited exciting excitement excitedly",
    "frustrate frustrates frustrated frustrating frustration frustrations",
    "happy happier happiest happily happiness",
    "joy joys joyful joyfully joyous joyously",
    "peace peaceful peacefully peacefulness",
    "power powers powerful powerfully",
    "sad sadder saddest sadly sadness sadden saddened",
    "scare scares scared scary scarier",
)
"""Words of one root, for labels where adding SUFFIXES would miss some. Synonyms are allowed: "great" for joy
is expression."""
SUFFIXES = (
    "",
    "s",
    "es",
    "d",
    "ed",
    "ing",
    "ingly",
    "ly",
    "ful",
    "fully",
    "ness",
    "ous",
    "ment",
    "y",
    "ally",
    "ity",
)


def failed_gates(
    text: str,
    history: Sequence[Turn],
    labels: Collection[str],
    min_words: int,
    max_words: int,
    finished: bool = True,
) -> tuple[Gate, ...]:
    """List the gates that a reply fails, in a fixed order; empty for an admissible one.

    Args:
        text: the reply as decoded, not yet cleaned: a line break in it is evidence.
        history: turns the responder was shown.
        labels: the closed label set; naming any of its labels is a leak, not only a target's.
        min_words: shortest admissible reply, in words.
        max_words: longest admissible reply, in words.
        finished: False if the token cap cut the reply.
    """
    spoken = _words(text)
    checks: list[tuple[Gate, bool]] = [
        ("cut", not finished),
        ("length", not min_words <= len(spoken) <= max_words),
        ("leak", leaks_label(spoken, labels)),
        ("copy", any(is_copy(spoken, _words(turn.text)) for turn in history)),
        ("turns", holds_other_turns(text, [turn.speaker for turn in history])),
    ]
    return tuple(gate for gate, failed in checks if failed)


def leaks_label(spoken: Collection[str], labels: Collection[str]) -> bool:
    """Tell whether a word names a label of the closed set, inflections such as "angry" for anger included."""
    return not label_words(frozenset(labels)).isdisjoint(spoken)


@lru_cache(maxsize=64)
def label_words(labels: frozenset[str]) -> frozenset[str]:
    """List every word that names one of the labels. A label of several words is named by its longest one."""
    found: set[str] = set()
    for label in labels:
        word = max(re.split(r"[ _-]+", label), key=len)
        family = next((members for members in (row.split() for row in _FAMILIES) if word in members), None)
        found.update(
            family or (stem + suffix for stem in (word, word.removesuffix("e")) for suffix in SUFFIXES)
        )
        found.add(word)
    return frozenset(found)


@lru_cache(maxsize=8192)
def _words(text: str) -> tuple[str, ...]:
    """Split a text into words; every reply to a turn is compared with it."""
    return tuple(words(text))


@lru_cache(maxsize=8192)
def _set(spoken: tuple[str, ...]) -> frozenset[str]:
    return frozenset(spoken)


def is_copy(spoken: Sequence[str], earlier: Sequence[str]) -> bool:
    """Tell whether a reply repeats an earlier turn.

    It does so word for word, or in one run of at least 4 words that makes up 80% of the reply.
    """
    if spoken == earlier:
        return bool(spoken)
    if len(spoken) < COPY_MIN_WORDS or len(earlier) < COPY_MIN_WORDS:
        return False
    least = max(COPY_MIN_WORDS, COPY_SHARE * len(spoken))
    if sum(map(_set(tuple(earlier)).__contains__, spoken)) < least:
        return False  # no run is longer than the words that both have
    return SequenceMatcher(None, spoken, earlier, autojunk=False).find_longest_match().size >= least


def holds_other_turns(text: str, speakers: Collection[str]) -> bool:
    """Tell whether a reply holds more than its own turn.

    The signs are a line break, a speaker's name with a colon, and a chat-template marker; full-width colons
    and bars count. Where words have no blanks between them, a name begins at any border of UAX 29.
    """
    folded = fold(text)
    if len(text.strip().splitlines()) > 1 or "<|" in folded:
        return True
    if ":" not in folded:
        return False
    names = {fold(clean_speaker(name)) for name in speakers}
    return any(
        regex.search(rf"(?:(?<!\w)|\b){regex.escape(name)}\s*:", folded, regex.WORD | regex.V1)
        for name in names
    )
