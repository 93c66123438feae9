"""Near-duplicates among kept texts, found without comparing all pairs.

Two texts are near-duplicates when the Jaccard similarity of their word sets reaches a threshold t. If it does, and words are sorted by one
fixed order, the first n - ceil(t n) + 1 words of the one and of the other share a word (prefix filtering: Chaudhuri et al., ICDE 2006).
Rare words come first in that order, so an index from prefix words to texts finds few candidates, each then compared exactly. Word sets of
equal size that may differ in no word at all, which at t = 0.9 are all below 19 words, are looked up whole.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Collection, Iterable
from hashlib import blake2b

from selfemo.selfplay.gates import words

_EPSILON = 1e-9


class NearDuplicates:
    """A growing set of texts that can be asked for near-duplicates."""

    def __init__(self, threshold: float, known_texts: Iterable[str] = ()) -> None:
        """Args:
        threshold: Jaccard similarity from which texts count as duplicates; 0 makes everything one, 1 asks for equal word sets.
        known_texts: training texts, whose word counts fix the order of words; an unknown word is rarer than all of them.
        """
        self._threshold = threshold
        self._counts = Counter(word for text in known_texts for word in set(words(text)))
        self._texts: list[array[int]] = []
        self._index: dict[tuple[int, int], list[int]] = {}
        self._sets: set[bytes] = set()
        self._wordless = False

    def __len__(self) -> int:
        """Texts added."""
        return len(self._texts) + self._wordless

    def add(self, text: str) -> None:
        """Add a text."""
        ordered = self._ordered(text)
        if not ordered:
            self._wordless = True
            return
        for word in ordered[: self._prefix(len(ordered))]:
            self._index.setdefault((word, len(ordered)), []).append(len(self._texts))
        self._texts.append(array("q", ordered))
        self._sets.add(_digest(ordered))

    def holds(self, text: str) -> bool:
        """Whether some added text is a near-duplicate of this one."""
        ordered = self._ordered(text)
        if not ordered:
            return self._wordless
        if self._threshold <= 0:
            return len(self) > 0
        if _digest(ordered) in self._sets:
            return True
        size, seen, own = len(ordered), set(), set(ordered)
        for other_size in range(
            math.ceil(self._threshold * size - _EPSILON), math.floor(size / self._threshold + _EPSILON) + 1
        ):
            if other_size == size and (size - 1) < self._threshold * (size + 1) - _EPSILON:
                continue  # one word apart is already too far
            for word in ordered[: self._prefix(size)]:
                for place in self._index.get((word, other_size), ()):
                    if place not in seen:
                        seen.add(place)
                        if self._similar(own, self._texts[place]):
                            return True
        return False

    def _similar(self, own: set[int], other: Collection[int]) -> bool:
        shared = sum(word in own for word in other)
        return shared >= self._threshold * (len(own) + len(other) - shared) - _EPSILON

    def _prefix(self, size: int) -> int:
        return size - math.ceil(self._threshold * size - _EPSILON) + 1

    def _ordered(self, text: str) -> list[int]:
        """The text's distinct words as 63-bit numbers, rarest first."""
        return [
            _number(word) for word in sorted(set(words(text)), key=lambda word: (self._counts[word], word))
        ]


def _number(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "big") >> 1


def _digest(numbers: Iterable[int]) -> bytes:
    """16 bytes that stand for a set of words."""
    return blake2b(",".join(map(str, sorted(numbers))).encode(), digest_size=16).digest()
